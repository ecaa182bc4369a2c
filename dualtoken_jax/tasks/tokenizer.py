"""DualToken training: one forward pass, gradients at its outputs, one backward pass (METHOD: losses)."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dualtoken_jax import losses
from dualtoken_jax.config import Config
from dualtoken_jax.evaluation import metrics
from dualtoken_jax.models import bind, definition, init_params
from dualtoken_jax.models.dualtoken import DualToken, forward
from dualtoken_jax.models.quantizer import init_codebook, quantize, update_codebook
from dualtoken_jax.optimizer import FreezeConfig, make_optimizer, scaled, schedule, trainable, update_scales
from dualtoken_jax.tasks.accumulate import accumulate
from dualtoken_jax.tasks.adversary import Adversary
from dualtoken_jax.tasks.frozen import FrozenNetworks
from dualtoken_jax.tasks.state import TrainState, all_finite, guarded, moving_average, new_state, normalise

TERMS = (
    "hidden_mse hidden_cosine pooled_mse pooled_cosine commitment_pixel commitment_semantic mse perceptual gram".split()
)


class Learned(NamedTuple):
    """What rows of a batch teach."""

    gradients: dict  # of the parameters
    discriminator: dict | None  # gradients of its parameters
    terms: dict[str, jax.Array]  # of the loss, and the loss
    codebooks: dict  # after their update, where it is part of the lookup


class Tokenizer:
    """Pure functions of (state, batch), closed over the config."""

    def __init__(self, config: Config):
        self.config, self.loss = config, config.loss
        self.make = lambda rngs: DualToken(config.model, rngs)
        self.graphdef = definition(self.make)
        self.frozen = FrozenNetworks(config)
        self.semantic = "semantic" in config.model.branches
        self._fixed = tuple(branch for branch in config.model.branches if branch in config.freeze.modules)
        self.adversary = Adversary(config) if config.loss.adversarial and config.model.reconstructs else None
        self.rate = schedule(config.optimizer, config.train.steps)
        self.optimizer = make_optimizer(config.optimizer, self.rate)

    def init_state(self, key: jax.Array, frozen: dict) -> TrainState:
        """A state at step 0 whose vision tower is a copy of the teacher's, `frozen['siglip']['vision']`."""
        model_key, codebook_key, discriminator_key = jax.random.split(key, 3)
        params = init_params(self.make, model_key)
        params["vision"] = jax.tree.map(jnp.copy, frozen["siglip"]["vision"])
        codebooks = {
            branch: init_codebook(self.config.model.quantizer(branch), jax.random.fold_in(codebook_key, i))
            for i, branch in enumerate(self.config.model.branches)
        }
        rest = self.adversary.init(discriminator_key) if self.adversary else {}
        rest |= {"codebooks": codebooks, "frozen": frozen}
        return new_state(params, self.optimizer, self.config.train, key, **rest)

    def check_parameters(self) -> None:
        """Raises ValueError for a model that cannot be built, or a frozen or slow module that it does not have."""
        params = jax.eval_shape(partial(init_params, self.make), jax.random.key(0))
        trainable(params, self.freezable(self.config.freeze, params))
        update_scales(params, self.config.optimizer)

    def train_step(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step of the generator, the codebooks and, once it is on, the discriminator."""
        key, parts = jax.random.fold_in(jax.random.key(state.seed), state.step), self.config.train.accumulate
        # At 1 on average over the whole batch, weights mean the same in every part of it.
        rows = {"image": batch["image"], "weight": batch["weight"] / jnp.mean(batch["weight"])}
        learn = partial(self._learn, state, key if parts == 1 else None)
        learned, quantized = accumulate(learn, rows, parts)
        codebooks = learned.codebooks if parts == 1 else self._update_codebooks(state, quantized, key)
        new, norm = self._apply(state, learned.gradients, codebooks, learned.discriminator)
        terms = learned.terms | {"gradient_norm": norm, "learning_rate": self.rate(state.step)}
        finite = all_finite((terms, codebooks, new.discriminator))
        return guarded(finite, new, state), terms

    def _learn(self, state, key, rows) -> tuple[Learned, dict]:
        """Everything that some rows teach; with a `key` the codebooks are updated, without one what would update them.

        The weight of the generator's loss is that of these rows.
        """
        images, weight = normalise(rows["image"]), rows["weight"]

        def run(params):
            outputs, codebooks = forward(bind(self.graphdef, params), state.codebooks, images, key, self._fixed)
            commitments = {name: q.commitment for name, q in outputs.quantized.items()}
            semantic = (outputs.hidden, outputs.pooled)
            if not self.semantic:
                # No loss reads them: a tower without semantic codes has no backward pass past the pixel tap.
                semantic = jax.lax.stop_gradient(semantic)
            found = codebooks if key is not None else outputs.quantized
            return (outputs.reconstruction, *semantic, commitments), (outputs.decoder_features, found)

        outputs, pullback, (features, found) = jax.vjp(run, state.params, has_aux=True)
        reconstruction, *semantic = outputs
        teacher = self.frozen.teach(state.frozen, images)
        terms, semantic_gradients = self._semantic_terms(teacher, weight, semantic)
        image_terms, image_gradient, judged = self._image_terms(
            state, images, weight, teacher, reconstruction, features
        )
        (gradients,) = pullback((image_gradient, *semantic_gradients))
        terms |= image_terms
        terms["loss"] = sum(getattr(self.loss, name) * terms[name] for name in TERMS if name in terms)
        if "generator" in terms:
            terms["loss"] += self.loss.generator * terms["generator_weight"] * terms["generator"]
        learned = Learned(gradients, judged and judged.discriminator, terms, found if key is not None else {})
        if key is not None:
            return learned, {}
        return learned, {b: (q.assigned, q.codes) for b, q in found.items() if b not in self._fixed}

    def _update_codebooks(self, state, quantized, key):
        """All codebooks after one update of those that a stage trains, over the rows of the whole batch."""
        updated = dict(state.codebooks)
        for index, branch in enumerate(self.config.model.branches):
            if branch in quantized:
                config, branch_key = self.config.model.quantizer(branch), jax.random.fold_in(key, index)
                updated[branch] = update_codebook(state.codebooks[branch], *quantized[branch], config, branch_key)
        return updated

    def _semantic_terms(self, teacher, weight, outputs):
        """Terms of u, p and the commitments, with their weighted gradients."""
        mean = lambda values: jnp.mean(values * weight)  # noqa: E731

        def total(outputs):
            hidden, pooled, commitments = outputs
            hidden = hidden.astype(jnp.float32)
            terms = {f"commitment_{name}": value for name, value in commitments.items()}
            if self.semantic:
                terms |= {
                    "hidden_mse": mean(losses.squared_error(hidden, teacher.hidden)),
                    "hidden_cosine": -mean(losses.cosine(hidden, teacher.hidden)),
                    "pooled_mse": mean(losses.squared_error(pooled, teacher.pooled)),
                    "pooled_cosine": -mean(losses.cosine(pooled, teacher.pooled)),
                }
            return sum(getattr(self.loss, name) * value for name, value in terms.items()), terms

        gradients, terms = jax.grad(total, has_aux=True)(tuple(outputs))
        return terms, gradients

    def _image_terms(self, state, images, weight, teacher, reconstruction, features):
        """Terms of x̂ with their gradient at x̂; the decoder's backward pass then runs once for all of them."""
        if reconstruction is None:
            return {}, None, None
        loss = self.loss

        error = lambda x: jnp.mean(losses.squared_error(x, images) * weight)  # noqa: E731
        mse, mse_gradient = jax.value_and_grad(error)(reconstruction)
        perceptual, pullback = self.frozen.perceptual(state.frozen, reconstruction, images, teacher, weight)
        terms = {"mse": mse} | perceptual
        weights = {name: getattr(loss, name) for name in perceptual}
        if not self.adversary:
            return terms, loss.mse * mse_gradient + pullback(weights), None
        # w balances without the weights, and without Gram: a backward pass for each, of one forward pass.
        perceptual_gradient = pullback({"perceptual": 1.0})
        gradient = loss.mse * mse_gradient + loss.perceptual * perceptual_gradient
        if loss.gram > 0:
            gradient += pullback({"gram": loss.gram})
        judged = self.adversary.judge(state, images, reconstruction)
        w = self._generator_weight(state.params, features, mse_gradient + perceptual_gradient, judged.gradient)
        w = jnp.where(self.adversary.is_on(state), w, 0.0)
        terms |= {"generator": judged.generator_loss, "generator_weight": w, "discriminator": judged.loss}
        return terms, gradient + loss.generator * w * judged.gradient, judged

    def _generator_weight(self, params, features, reconstruction_gradient, generator_gradient):
        """w from gradients at the last layer's kernel alone: both come from gradients at x̂ and that layer's input."""
        if self.loss.generator_weight == "constant":
            return jnp.float32(1.0)
        model = bind(self.graphdef, params)
        layer = model.decoder.last_layer

        def last(kernel):
            decoder = params["decoder"] | {layer: params["decoder"][layer] | {"kernel": kernel}}
            return bind(self.graphdef, params | {"decoder": decoder}).decoder.output(features)

        _, pullback = jax.vjp(last, params["decoder"][layer]["kernel"])
        return losses.adaptive_weight(pullback(reconstruction_gradient)[0], pullback(generator_gradient)[0])

    def _apply(self, state, gradients, codebooks, discriminator_gradients):
        """The state after this step's updates, and the norm of the gradients."""
        masks = trainable(state.params, self.freezable(self.config.freeze, state.params))
        gradients = scaled(gradients, masks)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.params)
        updates = scaled(scaled(updates, masks), update_scales(state.params, self.config.optimizer))
        params = optax.apply_updates(state.params, updates)
        ema = moving_average(state.ema, params, self.config.train.ema_decay)
        new = state.replace(params=params, optimizer=optimizer, ema=ema, codebooks=codebooks)
        if discriminator_gradients is not None:
            new = new.replace(**self.adversary.learn(new, discriminator_gradients))
        return new, optax.global_norm(gradients)

    def freezable(self, freeze: FreezeConfig, params: dict) -> FreezeConfig:
        """`freeze` without the branches that have no projections: they have a codebook to freeze, and no parameter."""
        empty = set(self.config.model.branches) - set(params)
        return dataclasses.replace(freeze, modules=tuple(name for name in freeze.modules if name not in empty))

    def eval_step(self, state: TrainState, batch: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        """What an evaluation collects from a batch.

        Returns:
          'sums': weighted sums over the batch of per-example metrics (see evaluation.metrics.weighted_sums), among
          them by branch 'residual_energy': Σ‖z − ẑ‖² / Σ‖z‖² of each image;
          'codes': counts [D, K] by branch;
          'embeddings': [B, C] each: 'image' (after quantization), 'text', 'teacher', and where there is a semantic
          codebook 'teacher_quantized': the frozen teacher's own h_semantic through this tokenizer's semantic
          projections and codebook, finished by the teacher; where there is a decoder
          'reconstruction', the teacher's view of x̂.
        """
        images, weight = normalise(batch["image"]), batch["weight"]
        model, siglip = bind(self.graphdef, state.averaged), self.frozen.siglip(state.frozen)
        outputs, _ = forward(model, state.codebooks, images)
        teacher = self.frozen.teach(state.frozen, images)
        values = {
            "cosine_hidden": losses.cosine(outputs.hidden.astype(jnp.float32), teacher.hidden),
            "cosine_pooled": losses.cosine(outputs.pooled, teacher.pooled),
        }
        for name, quantized in outputs.quantized.items():
            energy = losses.squared_error(quantized.output + quantized.residual, 0.0)
            values[f"residual_energy_{name}"] = losses.squared_error(quantized.residual, 0.0) / energy
        embeddings = {"image": outputs.pooled, "text": siglip.text(batch["text"]), "teacher": teacher.pooled}
        if outputs.reconstruction is not None:
            clamped = jnp.clip(outputs.reconstruction, -1, 1)
            x, y = (images + 1) / 2, (clamped + 1) / 2
            values |= {"psnr": metrics.psnr(x, y), "ssim": metrics.ssim(x, y), "l1": metrics.l1(x, y)}
            embeddings["reconstruction"] = siglip.vision(clamped)
        if self.semantic:
            embeddings["teacher_quantized"] = self._quantize_teacher(state, model, siglip, teacher.hidden)
        side = self.config.model.siglip.grid
        codes = {
            name: metrics.code_counts(
                q.codes.reshape(-1, side, side, q.codes.shape[-1]), self.config.model.quantizer(name).codes, weight
            )
            for name, q in outputs.quantized.items()
        }
        return {"sums": metrics.weighted_sums(values, weight), "codes": codes, "embeddings": embeddings}

    def _quantize_teacher(self, state, model, siglip, hidden):
        vectors = model.semantic.down(hidden).astype(jnp.float32)
        quantized = quantize(state.codebooks["semantic"], vectors, self.config.model.semantic)
        replaced = model.semantic.up(quantized.output)
        return siglip.vision.pool(siglip.vision.encoder(replaced, self.config.model.semantic_layer))

    def embed_text(self, state: TrainState, ids: jax.Array) -> jax.Array:
        """Text embeddings [n, C] of token ids [n, T], by the frozen text tower."""
        return self.frozen.siglip(state.frozen).text(ids)

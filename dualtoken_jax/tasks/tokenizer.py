"""DualToken training: one forward pass, gradients at its outputs, one backward pass (METHOD: losses)."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dualtoken_jax import losses
from dualtoken_jax.config import SHALLOW, Config
from dualtoken_jax.evaluation import metrics
from dualtoken_jax.models import bind, definition, init_params
from dualtoken_jax.models.discriminator import Discriminator
from dualtoken_jax.models.dualtoken import DualToken, forward
from dualtoken_jax.models.quantizer import init_codebook, quantize
from dualtoken_jax.models.siglip import Siglip
from dualtoken_jax.models.vgg import Lpips
from dualtoken_jax.optimizer import (
    FreezeConfig,
    discriminator_schedule,
    make_optimizer,
    scaled,
    schedule,
    trainable,
    update_scales,
)
from dualtoken_jax.tasks.state import TrainState, all_finite, guarded, moving_average, new_state, normalise

TERMS = (
    "hidden_mse hidden_cosine pooled_mse pooled_cosine commitment_pixel commitment_semantic mse perceptual gram".split()
)


class Teaching(NamedTuple):
    """What the frozen teacher says of a batch."""

    shallow: list[jax.Array]  # h_1 … h_SHALLOW [B, N, C]; empty where LPIPS is used
    hidden: jax.Array  # t at the semantic layer [B, N, C] float32
    pooled: jax.Array  # t_p [B, C] float32


class Tokenizer:
    """Pure functions of (state, batch), closed over the config."""

    def __init__(self, config: Config):
        self.config, self.loss = config, config.loss
        self.make = lambda rngs: DualToken(config.model, rngs)
        self.make_discriminator = lambda rngs: Discriminator(config.discriminator, rngs)
        self.graphdef = definition(self.make)
        self.siglip = definition(lambda rngs: Siglip(config.model.siglip, rngs))
        self.lpips = definition(lambda rngs: Lpips(rngs=rngs, compute_dtype=jnp.dtype(config.model.siglip.dtype)))
        self.semantic = "semantic" in config.model.branches
        self.adversarial = config.loss.adversarial and config.model.reconstructs
        self.discriminator = definition(self.make_discriminator) if self.adversarial else None
        self.rate = schedule(config.optimizer, config.train.steps)
        self.optimizer = make_optimizer(config.optimizer, self.rate)
        rate = discriminator_schedule(config.discriminator_optimizer, config.train.steps)
        self.discriminator_optimizer = make_optimizer(config.discriminator_optimizer, rate)

    def init_state(self, key: jax.Array, frozen: dict) -> TrainState:
        """A state at step 0 whose vision tower is a copy of the teacher's, `frozen['siglip']['vision']`."""
        model_key, codebook_key, discriminator_key = jax.random.split(key, 3)
        params = init_params(self.make, model_key)
        params["vision"] = jax.tree.map(jnp.copy, frozen["siglip"]["vision"])
        codebooks = {
            branch: init_codebook(self.config.model.quantizer(branch), jax.random.fold_in(codebook_key, i))
            for i, branch in enumerate(self.config.model.branches)
        }
        rest = {}
        if self.adversarial:
            discriminator = init_params(self.make_discriminator, discriminator_key)
            rest["discriminator"] = discriminator
            rest["discriminator_optimizer"] = self.discriminator_optimizer.init(discriminator)
        rest |= {"codebooks": codebooks, "frozen": frozen}
        return new_state(params, self.optimizer, self.config.train, key, **rest)

    def check_parameters(self) -> None:
        """Raises ValueError for a model that cannot be built, or a frozen or slow module that it does not have."""
        params = jax.eval_shape(partial(init_params, self.make), jax.random.key(0))
        trainable(params, self.freezable(self.config.freeze, params))
        update_scales(params, self.config.optimizer)

    def train_step(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step of the generator, the codebooks and, once it is on, the discriminator."""
        images, weight = normalise(batch["image"]), batch["weight"]
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        fixed = tuple(b for b in self.config.model.branches if b in self.config.freeze.modules)

        def run(params):
            outputs, codebooks = forward(bind(self.graphdef, params), state.codebooks, images, key, fixed)
            commitments = {name: q.commitment for name, q in outputs.quantized.items()}
            semantic = (outputs.hidden, outputs.pooled)
            if not self.semantic:
                # No loss reads them: a tower without semantic codes has no backward pass past the pixel tap.
                semantic = jax.lax.stop_gradient(semantic)
            return (outputs.reconstruction, *semantic, commitments), (outputs.decoder_features, codebooks)

        outputs, pullback, (features, codebooks) = jax.vjp(run, state.params, has_aux=True)
        reconstruction, *semantic = outputs
        teacher = self._teach(state.frozen, images)
        terms, semantic_gradients = self._semantic_terms(teacher, weight, semantic)
        image_terms, image_gradient, adversary = self._image_terms(
            state, images, weight, teacher, reconstruction, features
        )
        (gradients,) = pullback((image_gradient, *semantic_gradients))

        new, norm = self._apply(state, gradients, codebooks, adversary)
        terms |= image_terms | {"gradient_norm": norm, "learning_rate": self.rate(state.step)}
        terms["loss"] = sum(getattr(self.loss, name) * terms[name] for name in TERMS if name in terms)
        if "generator" in terms:
            terms["loss"] += self.loss.generator * terms["generator_weight"] * terms["generator"]
        finite = all_finite((terms, codebooks, new.discriminator))
        return guarded(finite, new, state), terms

    def _semantic_terms(self, teacher, weight, outputs):
        """Terms of u, p and the commitments, with their weighted gradients."""
        mean = lambda values: jnp.average(values, weights=weight)  # noqa: E731

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

        error = lambda x: jnp.average(losses.squared_error(x, images), weights=weight)  # noqa: E731
        mse, mse_gradient = jax.value_and_grad(error)(reconstruction)
        perceptual, pullback = self._perceptual(state.frozen, reconstruction, images, teacher, weight)
        terms = {"mse": mse} | perceptual
        weights = {name: getattr(loss, name) for name in perceptual}
        if not self.adversarial:
            return terms, loss.mse * mse_gradient + pullback(weights), None
        # w balances without the weights, and without Gram: a backward pass for each, of one forward pass.
        perceptual_gradient = pullback({"perceptual": 1.0})
        gradient = loss.mse * mse_gradient + loss.perceptual * perceptual_gradient
        if loss.gram > 0:
            gradient += pullback({"gram": loss.gram})
        on = state.step >= loss.discriminator_start
        adversary = jax.lax.cond(on, self._adversary, self._no_adversary, state, images, reconstruction)
        generator_loss, generator_gradient, discriminator_loss = adversary[:3]
        w = self._generator_weight(state.params, features, mse_gradient + perceptual_gradient, generator_gradient)
        w = jnp.where(on, w, 0.0)
        terms |= {"generator": generator_loss, "generator_weight": w, "discriminator": discriminator_loss}
        return terms, gradient + loss.generator * w * generator_gradient, adversary[3:]

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

    def _perceptual(self, frozen, reconstruction, images, teacher, weight):
        """LPIPS, or the same on the teacher's first layers, and the Gram term of the same features.

        Returns the terms and a function from their weights to the weighted sum's gradient at x̂.
        """
        if not self.loss.perceives:
            return {"perceptual": jnp.float32(0.0)}, lambda weights: jnp.zeros_like(reconstruction)
        if self.loss.perceptual_network == "lpips":
            lpips = bind(self.lpips, frozen["lpips"])
            features, target, distance = lpips.taps, lpips.taps(images), lpips.distance
        else:
            features, target, distance = partial(self._shallow, frozen), teacher.shallow, losses.feature_distance

        def terms(x):
            found = features(x)
            values = {"perceptual": distance(found, target)}
            if self.loss.gram > 0:
                values["gram"] = losses.gram_distance(found, target)
            return {name: jnp.average(value, weights=weight) for name, value in values.items()}

        values, pullback = jax.vjp(terms, reconstruction)
        return values, lambda weights: pullback({name: jnp.float32(weights.get(name, 0.0)) for name in values})[0]

    def _shallow(self, frozen, images):
        """h_1 … h_SHALLOW of the teacher, each [B, N, C]."""
        vision = bind(self.siglip, frozen["siglip"]).vision
        hidden = [vision.embed(images)]
        for layer in range(SHALLOW):
            hidden.append(vision.encoder(hidden[-1], layer, layer + 1))
        return hidden[1:]

    def _adversary(self, state, images, fake):
        """Generator loss with its gradient at x̂, and the discriminator after one step."""
        judge = lambda params, x: bind(self.discriminator, params)(x)  # noqa: E731
        generator_loss, gradient = jax.value_and_grad(lambda x: -judge(state.discriminator, x).mean())(fake)
        settled = state.step >= self.loss.discriminator_settled
        scale = jnp.where(settled, 0.75, 1.0)

        def discriminator_loss(params):
            loss = losses.discriminator_loss(judge(params, images), judge(params, fake), self.loss.discriminator)
            return scale * loss, loss

        (_, loss), gradients = jax.value_and_grad(discriminator_loss, has_aux=True)(state.discriminator)
        updates, optimizer = self.discriminator_optimizer.update(
            gradients, state.discriminator_optimizer, state.discriminator
        )
        return generator_loss, gradient, loss, optax.apply_updates(state.discriminator, updates), optimizer

    def _no_adversary(self, state, images, fake):
        zero = jnp.float32(0.0)
        return zero, jnp.zeros_like(fake), zero, state.discriminator, state.discriminator_optimizer

    def _apply(self, state, gradients, codebooks, adversary):
        """The state after this step's updates, and the norm of the gradients."""
        masks = trainable(state.params, self.freezable(self.config.freeze, state.params))
        gradients = scaled(gradients, masks)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.params)
        updates = scaled(scaled(updates, masks), update_scales(state.params, self.config.optimizer))
        params = optax.apply_updates(state.params, updates)
        ema = moving_average(state.ema, params, self.config.train.ema_decay)
        new = state.replace(params=params, optimizer=optimizer, ema=ema, codebooks=codebooks)
        if adversary is not None:
            new = new.replace(discriminator=adversary[0], discriminator_optimizer=adversary[1])
        return new, optax.global_norm(gradients)

    def freezable(self, freeze: FreezeConfig, params: dict) -> FreezeConfig:
        """`freeze` without the branches that have no projections: they have a codebook to freeze, and no parameter."""
        empty = set(self.config.model.branches) - set(params)
        return dataclasses.replace(freeze, modules=tuple(name for name in freeze.modules if name not in empty))

    def _teach(self, frozen, images) -> Teaching:
        vision, layer = bind(self.siglip, frozen["siglip"]).vision, self.config.model.semantic_layer
        shallow, start, hidden = [], 0, vision.embed(images)
        if self.loss.perceptual_network == "teacher":
            shallow, start = self._shallow(frozen, images), SHALLOW
            hidden = shallow[-1]
        hidden = vision.encoder(hidden, start, layer)
        return Teaching(shallow, hidden.astype(jnp.float32), vision.pool(vision.encoder(hidden, layer)))

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
        model, siglip = bind(self.graphdef, state.averaged), bind(self.siglip, state.frozen["siglip"])
        outputs, _ = forward(model, state.codebooks, images)
        teacher = self._teach(state.frozen, images)
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
        return bind(self.siglip, state.frozen["siglip"]).text(ids)

"""Image–text contrastive training of a SigLIP: the demo's teacher."""

from functools import partial

import jax
import optax

from dualtoken_jax import losses
from dualtoken_jax.config import Config
from dualtoken_jax.models import bind, definition, init_params
from dualtoken_jax.models.siglip import Siglip
from dualtoken_jax.optimizer import make_optimizer, scaled, schedule, update_scales
from dualtoken_jax.tasks.accumulate import accumulate
from dualtoken_jax.tasks.state import TrainState, all_finite, guarded, moving_average, new_state, normalise


class Contrastive:
    """Pure functions of (state, batch), closed over the config."""

    def __init__(self, config: Config):
        self.config = config
        self.make = lambda rngs: Siglip(config.model.siglip, rngs)
        self.graphdef = definition(self.make)
        self.rate = schedule(config.optimizer, config.train.steps)
        self.optimizer = make_optimizer(config.optimizer, self.rate)

    def init_state(self, key: jax.Array, frozen: dict) -> TrainState:
        """A state at step 0; a contrastive run has no frozen weights."""
        params = init_params(self.make, key)
        return new_state(params, self.optimizer, self.config.train, key, frozen=frozen)

    def check_parameters(self) -> None:
        """Raises ValueError for a model that cannot be built, or a slow module that it does not have."""
        update_scales(jax.eval_shape(partial(init_params, self.make), jax.random.key(0)), self.config.optimizer)

    def train_step(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        """One AdamW step on the pairwise loss."""
        whole = {name: batch[name] for name in ("image", "text", "weight")}
        if self.config.train.accumulate == 1:
            of_batch = lambda params: self._loss(params, *self._embed(params, whole), whole)  # noqa: E731
            loss, gradients = jax.value_and_grad(of_batch)(state.params)
        else:
            loss, gradients = self._in_parts(state.params, whole)
        norm = optax.global_norm(gradients)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.params)
        updates = scaled(updates, update_scales(state.params, self.config.optimizer))
        params = optax.apply_updates(state.params, updates)
        ema = moving_average(state.ema, params, self.config.train.ema_decay)
        new = state.replace(params=params, optimizer=optimizer, ema=ema)
        metrics = {"loss": loss, "gradient_norm": norm, "learning_rate": self.rate(state.step)}
        return guarded(all_finite((loss, norm)), new, state), metrics

    def _embed(self, params, batch) -> tuple[jax.Array, jax.Array]:
        """Unit vectors of images and texts, [B, C] each."""
        model = bind(self.graphdef, params)
        return losses.unit(model.vision(normalise(batch["image"]))), losses.unit(model.text(batch["text"]))

    def _loss(self, params, image, text, batch) -> jax.Array:
        sigmoid = self.config.loss.contrastive == "sigmoid"
        contrast = losses.sigmoid_contrastive if sigmoid else losses.softmax_contrastive
        # Captions that read the same are all positives: in a small vocabulary they are frequent, and calling them
        # negatives would teach noise.
        same = (batch["text"][:, None] == batch["text"][None]).all(axis=-1)
        model = bind(self.graphdef, params)
        return contrast(image @ text.T, model.logit_scale[...], model.logit_bias[...], same, batch["weight"])

    def _in_parts(self, params, batch) -> tuple[jax.Array, dict]:
        """Loss and gradients where the towers see a part of the batch at a time, and the loss all pairs.

        First all embeddings, then the gradients at them, then the towers' (Gao et al. 2021, arXiv 2101.06983).
        """
        parts = self.config.train.accumulate
        _, embeddings = accumulate(lambda part: ({}, self._embed(params, part)), batch, parts)
        loss, (gradients, *at) = jax.value_and_grad(self._loss, argnums=(0, 1, 2))(params, *embeddings, batch)

        def through_towers(part):
            _, pullback = jax.vjp(lambda params: self._embed(params, part["batch"]), params)
            return pullback(part["at"])[0], {}

        means, _ = accumulate(through_towers, {"batch": batch, "at": tuple(at)}, parts)
        return loss, jax.tree.map(lambda a, mean: a + parts * mean, gradients, means)

    def eval_step(self, state: TrainState, batch: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        """Embeddings of a batch: {'embeddings': {'image', 'text'}}, each [B, C]."""
        model = bind(self.graphdef, state.averaged)
        image = model.vision(normalise(batch["image"]))
        return {"embeddings": {"image": image, "text": model.text(batch["text"])}}

    def embed_text(self, state: TrainState, ids: jax.Array) -> jax.Array:
        """Text embeddings [n, C] of token ids [n, T]."""
        return bind(self.graphdef, state.averaged).text(ids)

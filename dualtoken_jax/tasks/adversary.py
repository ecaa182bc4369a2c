"""The discriminator's half of a tokenizer's step (METHOD: losses)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dualtoken_jax import losses
from dualtoken_jax.config import Config
from dualtoken_jax.models import bind, definition, init_params
from dualtoken_jax.models.discriminator import Discriminator
from dualtoken_jax.optimizer import discriminator_schedule, make_optimizer
from dualtoken_jax.tasks.state import TrainState


class Judgement(NamedTuple):
    """What the discriminator says of a reconstruction, and what there is to learn from it."""

    generator_loss: jax.Array  # scalar, L_G
    gradient: jax.Array  # of L_G at x̂ [B, H, W, 3]
    loss: jax.Array  # scalar, L_D, not scaled
    discriminator: dict  # gradients of its parameters


class Adversary:
    """Pure functions of the state, closed over the config."""

    def __init__(self, config: Config):
        self.loss = config.loss
        self._make = lambda rngs: Discriminator(config.discriminator, rngs)
        self.graphdef = definition(self._make)
        rate = discriminator_schedule(config.discriminator_optimizer, config.train.steps)
        self.optimizer = make_optimizer(config.discriminator_optimizer, rate)

    def init(self, key: jax.Array) -> dict:
        """The discriminator's fields of a train state at step 0."""
        params = init_params(self._make, key)
        return {"discriminator": params, "discriminator_optimizer": self.optimizer.init(params)}

    def is_on(self, state: TrainState) -> jax.Array:
        """Whether the discriminator trains and counts at the state's step."""
        return state.step >= self.loss.discriminator_start

    def judge(self, state: TrainState, images: jax.Array, fake: jax.Array) -> Judgement:
        """Losses and gradients on images and reconstructions [B, H, W, 3]; zeros before the discriminator's start."""
        return jax.lax.cond(self.is_on(state), self._look, self._wait, state, images, fake)

    def learn(self, state: TrainState, gradients: dict) -> dict:
        """The discriminator's fields of the state after one step; as they are before its start."""
        fields = {"discriminator": state.discriminator, "discriminator_optimizer": state.discriminator_optimizer}
        return jax.lax.cond(self.is_on(state), self._step, lambda fields, _: fields, fields, gradients)

    def _look(self, state, images, fake):
        logits = lambda params, x: bind(self.graphdef, params)(x)  # noqa: E731
        generator_loss, gradient = jax.value_and_grad(lambda x: -logits(state.discriminator, x).mean())(fake)
        settled = state.step >= self.loss.discriminator_settled
        scale = jnp.where(settled, 0.75, 1.0)

        def discriminator_loss(params):
            loss = losses.discriminator_loss(logits(params, images), logits(params, fake), self.loss.discriminator)
            return scale * loss, loss

        (_, loss), gradients = jax.value_and_grad(discriminator_loss, has_aux=True)(state.discriminator)
        return Judgement(generator_loss, gradient, loss, gradients)

    def _wait(self, state, images, fake):
        zero = jnp.float32(0.0)
        return Judgement(zero, jnp.zeros_like(fake), zero, jax.tree.map(jnp.zeros_like, state.discriminator))

    def _step(self, fields, gradients):
        params = fields["discriminator"]
        updates, optimizer = self.optimizer.update(gradients, fields["discriminator_optimizer"], params)
        return {"discriminator": optax.apply_updates(params, updates), "discriminator_optimizer": optimizer}

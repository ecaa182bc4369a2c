"""The discriminator's half of a tokenizer's step (METHOD: losses)."""

from typing import Any, NamedTuple

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
    """What the discriminator says of a reconstruction, and what it learned from it."""

    generator_loss: jax.Array  # scalar, L_G
    gradient: jax.Array  # of L_G at x̂ [B, H, W, 3]
    loss: jax.Array  # scalar, L_D, not scaled
    discriminator: dict  # parameters after the step
    optimizer: Any  # its state after the step


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
        """One step of the discriminator on images and reconstructions [B, H, W, 3]; nothing before its start."""
        return jax.lax.cond(self.is_on(state), self._step, self._wait, state, images, fake)

    def _step(self, state, images, fake):
        logits = lambda params, x: bind(self.graphdef, params)(x)  # noqa: E731
        generator_loss, gradient = jax.value_and_grad(lambda x: -logits(state.discriminator, x).mean())(fake)
        settled = state.step >= self.loss.discriminator_settled
        scale = jnp.where(settled, 0.75, 1.0)

        def discriminator_loss(params):
            loss = losses.discriminator_loss(logits(params, images), logits(params, fake), self.loss.discriminator)
            return scale * loss, loss

        (_, loss), gradients = jax.value_and_grad(discriminator_loss, has_aux=True)(state.discriminator)
        updates, optimizer = self.optimizer.update(gradients, state.discriminator_optimizer, state.discriminator)
        params = optax.apply_updates(state.discriminator, updates)
        return Judgement(generator_loss, gradient, loss, params, optimizer)

    def _wait(self, state, images, fake):
        zero = jnp.float32(0.0)
        return Judgement(zero, jnp.zeros_like(fake), zero, state.discriminator, state.discriminator_optimizer)

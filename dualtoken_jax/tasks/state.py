"""The train state of every task, and the step's safety net."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dualtoken_jax.config import TrainConfig


@flax.struct.dataclass
class TrainState:
    """Plain dicts of arrays; everything that a resumed run needs is here."""

    step: jax.Array  # int32, steps done
    params: dict
    optimizer: Any
    ema: dict  # moving average of params, {} where it is off
    consecutive_skips: jax.Array  # int32, non-finite steps in a row
    total_skips: jax.Array  # int32
    seed: jax.Array  # uint32, of all randomness; an array, so that runs of other seeds share a compiled step
    codebooks: dict = flax.struct.field(default_factory=dict)
    discriminator: dict = flax.struct.field(default_factory=dict)
    discriminator_optimizer: Any = ()
    frozen: dict = flax.struct.field(default_factory=dict)  # teacher and perceptual network; saved once, never changed

    @property
    def averaged(self) -> dict:
        """The parameters to evaluate and export: the moving average where there is one."""
        return self.ema or self.params


def new_state(
    params: dict, optimizer: optax.GradientTransformation, config: TrainConfig, key: jax.Array, **rest
) -> TrainState:
    """A state at step 0."""
    # One buffer per leaf: a donated state must not hold the same one twice.
    zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731
    average = {} if config.ema_decay is None else jax.tree.map(jnp.copy, params)
    return TrainState(zero(), params, optimizer.init(params), average, zero(), zero(), jax.random.bits(key), **rest)


def guarded(finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """`new` where `finite`; otherwise `old` with the step counted as skipped. Frozen weights pass through."""
    chosen = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new.replace(frozen={}), old.replace(frozen={}))
    return chosen.replace(
        step=old.step + 1,
        consecutive_skips=jnp.where(finite, 0, old.consecutive_skips + 1),
        total_skips=old.total_skips + jnp.where(finite, 0, 1),
        frozen=old.frozen,
    )


def all_finite(tree) -> jax.Array:
    """Whether every floating-point value is finite."""
    checks = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack(checks).all()


def moving_average(average: dict, params: dict, decay: float | None) -> dict:
    """The next moving average; {} stays {}."""
    if decay is None:
        return {}
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def normalise(images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] → float32 in [−1, 1] (mean = std = 0.5)."""
    return images.astype(jnp.float32) / 127.5 - 1.0

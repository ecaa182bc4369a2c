"""Optax chains, schedules, and which parameters a stage trains (METHOD: optimisation)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dualtoken_jax.paths import is_stacked, names


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to `final_learning_rate`."""

    learning_rate: float = 7.2e-5
    b1: float = 0.5
    b2: float = 0.9
    epsilon: float = 1e-8
    weight_decay: float = 1e-4  # of matrices and kernels; vectors, biases and norms have none
    warmup_steps: int = 10_000
    final_learning_rate: float = 0.0
    clip_norm: float | None = None  # global gradient norm; None does not clip
    slow_modules: tuple[str, ...] = ()  # path prefixes whose learning rate is multiplied by slow_factor
    slow_factor: float = 0.1


@dataclasses.dataclass(frozen=True)
class FreezeConfig:
    """What stays as it is."""

    modules: tuple[
        str, ...
    ] = ()  # path prefixes such as "pixel" or "vision/patch_embedding"; "pixel" holds its codebook too
    layers: int = 0  # layers 1 … n of the vision tower


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of step i: (i + 1) / warmup of the peak, then cosine over the rest."""
    peak, final, warmup = config.learning_rate, config.final_learning_rate, config.warmup_steps

    def rate(i):
        progress = jnp.clip((i - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        cosine = final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(i < warmup, peak * (i + 1) / max(warmup, 1), cosine)

    return rate


def discriminator_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """As the released code counts from the discriminator's own first step: from 0 up, then cosine over `steps`."""
    warmup = config.warmup_steps
    decay = optax.cosine_decay_schedule(
        config.learning_rate, max(steps - warmup, 1), config.final_learning_rate / config.learning_rate
    )
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1)), decay], [warmup])


def make_optimizer(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Adam where weight_decay is 0)."""
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    adamw = optax.adamw(rate, config.b1, config.b2, config.epsilon, weight_decay=config.weight_decay, mask=_decays)
    return optax.chain(*clip, adamw)


def _decays(params):
    return jax.tree_util.tree_map_with_path(lambda path, leaf: np.ndim(leaf) - is_stacked(path) > 1, params)


def trainable(params, freeze: FreezeConfig):
    """A mask like `params`, 1 where a stage trains and 0 where it does not; per layer where layers are stacked.

    Raises ValueError for a frozen module that does not exist.
    """
    _check_prefixes("freeze.modules", freeze.modules, params)

    def mask(path, leaf):
        name = "/".join(names(path))
        if _is_within(name, freeze.modules):
            return np.float32(0)
        if name.startswith("vision/encoder/layers/"):
            alive = np.arange(leaf.shape[0]) >= freeze.layers
            return alive.astype(np.float32).reshape(-1, *[1] * (leaf.ndim - 1))
        return np.float32(1)

    return jax.tree_util.tree_map_with_path(mask, params)


def update_scales(params, config: OptimizerConfig):
    """Factors like `params` for the updates: slow_factor in the slow modules, 1 elsewhere.

    Raises ValueError for a slow module that does not exist.
    """
    _check_prefixes("optimizer.slow_modules", config.slow_modules, params)

    def scale(path, _):
        return np.float32(config.slow_factor if _is_within("/".join(names(path)), config.slow_modules) else 1)

    return jax.tree_util.tree_map_with_path(scale, params)


def _is_within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + "/") for prefix in prefixes)


def _check_prefixes(field: str, prefixes: tuple[str, ...], params) -> None:
    present = ["/".join(names(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    missing = [prefix for prefix in prefixes if not any(_is_within(name, (prefix,)) for name in present)]
    if missing:
        raise ValueError(f"{field}: no parameter is called {missing}; top-level names are {sorted(params)}")


def scaled(tree, factors):
    """Gradients by the mask (so that moments of frozen weights stay 0), updates by mask and scale (decay included)."""
    return jax.tree.map(lambda leaf, factor: leaf * factor, tree, factors)

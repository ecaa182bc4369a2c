"""GroupNorm followed by an elementwise activation, whose backward pass keeps nothing but the input.

XLA would keep the normalised values and the activation's derivative too, twice the memory, and on a CPU both passes of
a large picture take over twice the time (measured: benchmarks/README.md).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

Activation = Callable[[jax.Array], jax.Array]


class GroupNorm(nnx.Module):
    """[B, ..., C] → the same; statistics in float32, the variance in two passes.

    Raises ValueError when the groups do not divide the channels.
    """

    def __init__(self, channels: int, groups: int, dtype, rngs: nnx.Rngs, epsilon: float = 1e-6):
        if channels % groups:
            raise ValueError(
                f"GroupNorm needs channels divisible by groups, got {channels} channels and {groups} groups"
            )
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups, self.dtype, self.epsilon = groups, dtype, epsilon

    def __call__(self, x: jax.Array, activation: Activation | None = None) -> jax.Array:
        """`activation` is a module-level function: each one of its own is compiled anew."""
        x = x if self.dtype is None else x.astype(self.dtype)
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        done = normalised(flat, self.scale[...], self.bias[...], self.groups, self.epsilon, activation or _as_it_is)
        return done.reshape(x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalised(x, scale, bias, groups: int, epsilon: float, activation: Activation) -> jax.Array:
    """x [B, P, C] normalised over positions and the channels of a group, times scale, plus bias, through activation."""
    return _forward(x, scale, bias, groups, epsilon, activation)[0]


def _forward(x, scale, bias, groups, epsilon, activation):
    wide = _wide(x)
    mean = _over_groups(wide.mean(axis=1), groups)
    variance = _over_groups(jnp.square(wide - mean).mean(axis=1), groups)
    rate = jax.lax.rsqrt(variance + epsilon)
    y = activation((wide - mean) * rate * scale + bias).astype(x.dtype)
    return y, (x, scale, bias, mean, rate)


def _backward(groups, epsilon, activation, saved, gradient):
    x, scale, bias, mean, rate = saved
    unit = (_wide(x) - mean) * rate
    (gradient,) = jax.vjp(activation, unit * scale + bias)[1](_wide(gradient))
    total, along = gradient.sum(axis=1), (gradient * unit).sum(axis=1)  # [B, C]
    shared = [_over_groups(sums * scale / x.shape[1], groups) for sums in (total, along)]
    x_gradient = rate * (gradient * scale - shared[0] - unit * shared[1])
    sums = (along.sum(axis=0).astype(scale.dtype), total.sum(axis=0).astype(bias.dtype))
    return x_gradient.astype(x.dtype), *sums


normalised.defvjp(_forward, _backward)


def _as_it_is(x: jax.Array) -> jax.Array:
    return x


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _over_groups(values: jax.Array, groups: int) -> jax.Array:
    """Of values [B, C] the mean of each group, at each of its channels: [B, 1, C]."""
    batch, channels = values.shape
    means = values.reshape(batch, groups, -1).mean(axis=-1, keepdims=True)
    return jnp.broadcast_to(means, (batch, groups, channels // groups)).reshape(batch, 1, channels)

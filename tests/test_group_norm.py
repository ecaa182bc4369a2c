"""GroupNorm with an activation against flax's, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dualtoken_jax.models.group_norm import GroupNorm


def leaky(x):
    return jax.nn.leaky_relu(x, 0.2)


def with_weights(make):
    """A module with weights that are neither one nor zero, as a pure function of (x, scale, bias)."""
    graphdef, _ = nnx.split(make())
    return lambda x, scale, bias, *rest: nnx.merge(graphdef, nnx.State({"scale": scale, "bias": bias}))(x, *rest)


@pytest.mark.parametrize("activation", [None, jax.nn.silu, leaky])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_like_flax(activation, dtype):
    ours = with_weights(lambda: GroupNorm(12, 4, dtype, nnx.Rngs(0)))
    flax = with_weights(
        lambda: nnx.GroupNorm(12, 4, epsilon=1e-6, use_fast_variance=False, dtype=dtype, rngs=nnx.Rngs(0))
    )
    theirs = lambda *arguments: (activation or (lambda y: y))(flax(*arguments))  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3 + 2 * jax.random.normal(keys[0], (2, 5, 3, 12))
    arguments = (x, jax.random.normal(keys[1], (12,)), jax.random.normal(keys[2], (12,)))
    y, pullback = jax.vjp(lambda *own: ours(*own, activation), *arguments)
    expected, expected_pullback = jax.vjp(theirs, *arguments)
    assert y.dtype == expected.dtype
    tolerance = 1e-5 if dtype is None else 0.03
    np.testing.assert_allclose(y.astype(jnp.float32), expected.astype(jnp.float32), rtol=tolerance, atol=tolerance)
    weights = jax.random.normal(keys[3], y.shape, y.dtype)
    for a, b in zip(pullback(weights), expected_pullback(weights), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(jnp.abs(b).max()))


def test_keeps_the_input_alone():
    """What the backward pass holds on to: x, two vectors of weights, and statistics of [B, 1, C]."""
    norm, x = GroupNorm(8, 4, None, nnx.Rngs(0)), jnp.ones((2, 64, 64, 8))
    _, pullback = jax.vjp(lambda x: norm(x, jax.nn.silu), x)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size]
    assert len(kept) == 1


def test_groups_must_divide():
    with pytest.raises(ValueError, match="10 channels and 4 groups"):
        GroupNorm(10, 4, None, nnx.Rngs(0))

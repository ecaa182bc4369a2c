"""Fused attention is the plain one: values, gradients, on a mesh, within the tower, and in a plan's figures."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from jax.sharding import AbstractMesh, AxisType

from dualtoken_jax.models import attention, bind, definition, init_params
from dualtoken_jax.models.attention import attend, splash_attention
from dualtoken_jax.models.siglip import Encoder, TowerConfig
from dualtoken_jax.planning import flops
from dualtoken_jax.planning.step import mathematics
from dualtoken_jax.sharding import AXES

HEADS, WIDTH = 2, 24  # as with 72 of 128, a head does not fill the lanes
_interpreted = partial(splash_attention, interpret=True)
_plain = partial(attend, kind="plain")


def _mesh(*shape):
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3)


def _tpu_mesh():
    """Of a slice that is not here."""
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    return AbstractMesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


def _arrays(tokens, dtype, rows=4, heads=HEADS):
    """Query, key, value, and the gradient of the output."""
    draw = np.random.default_rng(tokens).normal
    return [jnp.asarray(draw(size=(rows, tokens, heads, WIDTH)), dtype) for _ in range(4)]


def _with_gradients(function, query, key, value, gradient):
    """The output, and the three gradients, float32."""

    def run(*inputs):
        output, pull = jax.vjp(function, *inputs)
        return output, *pull(gradient)

    return [np.asarray(x, np.float32) for x in jax.jit(run)(query, key, value)]


def _error(found, true):
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, true, strict=True))


@pytest.mark.parametrize(("tokens", "causal"), [(37, False), (37, True), (128, False)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 6e-3)])
def test_values_and_gradients(tokens, causal, dtype, tolerance):
    arrays = _arrays(tokens, dtype)
    true = _with_gradients(partial(_plain, causal=causal), *[x.astype(jnp.float32) for x in arrays])
    error = _error(_with_gradients(partial(_interpreted, causal=causal), *arrays), true)
    assert (
        error < tolerance
    )  # bfloat16's own rounding is 2^-9, 2e-3; the plain form's error is 2.4e-3, this one's 3.5e-3


def test_unmasked_padding_would_be_seen(monkeypatch):
    arrays = _arrays(37, jnp.float32, rows=1)
    monkeypatch.setattr(attention, "_segments", lambda tokens, padded: None)
    assert _error(_with_gradients(_interpreted, *arrays), _with_gradients(_plain, *arrays)) > 1e-2


def test_more_tokens_than_a_block_holds(monkeypatch):
    monkeypatch.setattr(attention, "_WHOLE", 128)
    arrays = _arrays(200, jnp.float32, rows=1)
    assert _error(_with_gradients(_interpreted, *arrays), _with_gradients(_plain, *arrays)) < 2e-6


@pytest.mark.parametrize(("shape", "part"), [((2, 2, 2), (1, 37, 1, WIDTH)), ((2, 1, 4), (2, 37, 2, WIDTH))])
def test_each_device_takes_its_rows_and_the_heads_that_divide(shape, part):
    arrays = _arrays(37, jnp.float32)
    with jax.set_mesh(_mesh(*shape)):
        split = _with_gradients(_interpreted, *arrays)
        output = jax.jit(_interpreted)(*arrays[:3])
    assert output.sharding.shard_shape(output.shape) == part
    assert _error(split, _with_gradients(_plain, *arrays)) < 2e-6


def test_without_a_kernel_for_the_platform_it_is_the_plain_form():
    query, key, value, _ = _arrays(5, jnp.float32)
    fused, plain = (str(jax.make_jaxpr(partial(attend, kind=kind))(query, key, value)) for kind in ("fused", "plain"))
    assert fused == plain and "pallas_call" not in plain


def test_the_mesh_says_what_it_is_for():
    shape = jax.ShapeDtypeStruct((4, 37, HEADS, WIDTH), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(_tpu_mesh()):
        fused, plain = (jax.make_jaxpr(partial(attend, kind=kind))(*[shape] * 3) for kind in ("fused", "plain"))
    assert "pallas_call" in str(fused) and "pallas_call" not in str(plain)


def test_it_lowers_for_a_tpu(monkeypatch):
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    loss = lambda *arrays: attend(*arrays, "fused").astype(jnp.float32).sum()  # noqa: E731
    shape = jax.ShapeDtypeStruct((2, 729, HEADS, 72), jnp.bfloat16)
    exported = jax.export.export(jax.jit(jax.grad(loss, argnums=(0, 1, 2))), platforms=["tpu"])(*[shape] * 3)
    assert exported.mlir_module().count("tpu_custom_call") == 2


def _tower_gradient(kind, remat, params=None):
    make = lambda rngs: Encoder(TowerConfig(16, 2, 2, 16), kind, jnp.float32, remat, 1, rngs)  # noqa: E731
    params = init_params(make, jax.random.key(0)) if params is None else params
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 16)), jnp.float32)
    return jax.grad(lambda p: (bind(definition(make), p)(x) ** 2).sum()), params


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_a_scanned_and_recomputed_tower(monkeypatch, remat):
    plain, params = _tower_gradient("plain", "none")
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    monkeypatch.setattr(attention, "splash_attention", _interpreted)
    fused, _ = _tower_gradient("fused", remat)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), jax.jit(fused)(params), jax.jit(plain)(params)
    )
    assert "pallas_call" in str(jax.make_jaxpr(fused)(params))


def test_a_kernel_counts_all_its_blocks_on_all_devices():
    shape = jax.ShapeDtypeStruct((8, 37, HEADS, WIDTH), jnp.bfloat16)
    loss = lambda *arrays: splash_attention(*arrays).astype(jnp.float32).sum()  # noqa: E731
    product = 2 * 8 * HEADS * 128 * 128 * WIDTH
    with_gradients = jax.grad(loss, argnums=(0, 1, 2))
    assert flops.count(loss, *[shape] * 3).exact == 2 * product
    alone = flops.count(with_gradients, *[shape] * 3).exact
    # The weights again, a gradient for each factor of both products, and the output times its gradient.
    assert alone == (2 + 5) * product + 2 * 8 * HEADS * 128 * WIDTH
    with jax.set_mesh(_mesh(2, 2, 2)):
        assert flops.count(with_gradients, *[shape] * 3).exact == alone


def test_what_a_policy_keeps_is_not_computed_again(monkeypatch):
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    executed = {remat: flops.count(*_tower_gradient("fused", remat)).exact for remat in ("none", "dots", "full")}
    assert executed["none"] == executed["dots"] < executed["full"]


def test_a_plan_takes_the_mathematics_from_the_plain_form():
    config = tiny_config()
    fused = dataclasses.replace(config.model.siglip, attention="fused", remat="full")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, siglip=fused))
    assert mathematics(config).model.siglip == dataclasses.replace(fused, attention="plain", remat="none")

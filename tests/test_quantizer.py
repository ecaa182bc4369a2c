"""The quantizer's algebra; parity with the released code is in test_released.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualtoken_jax.models import nearest, quantizer
from dualtoken_jax.models.nearest import nearest_code
from dualtoken_jax.models.quantizer import QuantizerConfig, init_codebook

CONFIG = QuantizerConfig(codes=48, width=8, depth=3)
PRODUCT = dataclasses.replace(CONFIG, kind="product", shared_codebook=False)
SPHERE = dataclasses.replace(PRODUCT, normalise=True)
# Compiled whole: one by one, their operations take longer to compile.
quantize = jax.jit(quantizer.quantize, static_argnums=2)
quantize_and_update = jax.jit(quantizer.quantize_and_update, static_argnums=2)
embed_codes = jax.jit(quantizer.embed_codes, static_argnums=2)


def _vectors(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("codes", [7, 64, 100])
def test_nearest_code_equals_brute_force_over_blocks(codes, monkeypatch):
    monkeypatch.setattr(nearest, "_BLOCK", 16)
    vectors, embedding = _vectors(50, 8), _vectors(codes, 8, seed=1)
    expected = np.argmin(((vectors[:, None] - embedding[None]) ** 2).sum(-1), axis=1)
    np.testing.assert_array_equal(nearest_code(vectors, embedding), expected)


def test_ties_take_the_lowest_index_also_across_blocks(monkeypatch):
    monkeypatch.setattr(nearest, "_BLOCK", 4)
    embedding = jnp.tile(_vectors(3, 8), (4, 1))  # every code four times, in different blocks
    np.testing.assert_array_equal(nearest_code(embedding, embedding), np.arange(12) % 3)


def test_no_buffer_of_vectors_times_codes():
    vectors, embedding = jax.ShapeDtypeStruct((512, 8), "float32"), jax.ShapeDtypeStruct((16384, 8), "float32")
    text = jax.jit(nearest_code).lower(vectors, embedding).as_text()
    assert "512x1024x" in text and "512x16384x" not in text and "16384x512x" not in text


def test_residuals_shrink_and_codes_rebuild_the_output():
    codebook, z = init_codebook(CONFIG, jax.random.key(0)), _vectors(4, 5, 8)
    for seed in range(30):
        result, codebook = quantize_and_update(codebook, z, CONFIG, jax.random.key(seed))
    cumulative = embed_codes(codebook, quantize(codebook, z, CONFIG).codes, CONFIG)
    np.testing.assert_allclose(cumulative[..., -1, :], quantize(codebook, z, CONFIG).output, atol=1e-5)
    errors = [float(((z - cumulative[..., d, :]) ** 2).mean()) for d in range(CONFIG.depth)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("config", [CONFIG, PRODUCT])
def test_straight_through_gradient_is_the_identity(config):
    codebook, z = init_codebook(config, jax.random.key(0)), _vectors(4, config.channels)
    probe = _vectors(4, config.channels, seed=3)
    gradient = jax.grad(lambda z: (quantize(codebook, z, config).output * probe).sum())(z)
    np.testing.assert_allclose(gradient, probe)


def test_commitment_pulls_towards_the_cumulative_sums_and_never_the_codebook():
    codebook, z = init_codebook(CONFIG, jax.random.key(0)), _vectors(4, 8)
    by_codebook = jax.grad(lambda c: quantize(c, z, CONFIG).commitment)(codebook)
    assert all(not leaf.any() for leaf in jax.tree.leaves(by_codebook))
    sums = embed_codes(codebook, quantize(codebook, z, CONFIG).codes, CONFIG)
    expected = sum(2 * (z - sums[:, d]) for d in range(3)) / 3 / z.size
    np.testing.assert_allclose(jax.grad(lambda z: quantize(codebook, z, CONFIG).commitment)(z), expected, atol=1e-6)


@pytest.mark.parametrize("update", ["per_depth", "per_step", "per_step_aliased"])
@pytest.mark.parametrize("shared", [True, False])
def test_counts_are_the_ema_of_assignments(update, shared):
    config = dataclasses.replace(CONFIG, codebook_update=update, shared_codebook=shared, restart_threshold=None)
    codebook, z = init_codebook(config, jax.random.key(0)), _vectors(40, 8)
    result, new = quantize_and_update(codebook, z, config, jax.random.key(1))
    codes = np.asarray(result.codes)
    if shared and update == "per_depth":  # three EMA updates in a row
        expected = sum(0.99 ** (2 - d) * 0.01 * np.bincount(codes[:, d], minlength=48) for d in range(3))[None]
    elif shared:
        expected = 0.01 * np.bincount(codes.reshape(-1), minlength=48)[None]
    else:
        expected = np.stack([0.01 * np.bincount(codes[:, d], minlength=48) for d in range(3)])
    np.testing.assert_allclose(new["count"], expected, atol=1e-6)


def test_restart_redraws_exactly_the_codes_below_the_threshold():
    config = dataclasses.replace(CONFIG, restart_threshold=0.005, depth=1)
    codebook, z = init_codebook(config, jax.random.key(0)), _vectors(40, 8)
    result, new = quantize_and_update(codebook, z, config, jax.random.key(1))
    count = 0.01 * np.bincount(np.asarray(result.codes).reshape(-1), minlength=48)
    dead = count < 0.005
    assert dead.any() and not dead.all()
    np.testing.assert_allclose(new["count"][0], np.where(dead, 1.0, count), atol=1e-6)
    distance = np.abs(np.asarray(new["sum"][0])[dead][:, None] - np.asarray(z)[None]).max(-1).min(-1)
    assert distance.max() < 0.01 / 8**0.5 + 1e-6  # a vector of the batch, plus the noise of a tiled draw


def test_restart_draws_without_replacement_when_there_are_enough_vectors():
    vectors = _vectors(1, 100, 8)
    drawn = np.asarray(quantizer._restart_vectors(vectors, 48, jax.random.key(0)))
    assert len(np.unique(drawn, axis=0)) == 48


@pytest.mark.parametrize("config", [CONFIG, SPHERE])
def test_statistics_are_sums_over_the_global_batch(config):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    codebook, z = init_codebook(config, jax.random.key(0)), _vectors(16, 6, config.channels)
    step = jax.jit(lambda c, z: quantize_and_update(c, z, config, jax.random.key(1)))
    alone, sharded = step(codebook, z), step(codebook, jax.device_put(z, rows))
    np.testing.assert_array_equal(alone[0].codes, sharded[0].codes)
    for name in codebook:
        np.testing.assert_allclose(alone[1][name], sharded[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [PRODUCT, SPHERE])
def test_product_codes_are_the_nearest_of_each_group(config):
    codebook, z = init_codebook(config, jax.random.key(0)), _vectors(5, 4, 24)
    result = quantize(codebook, z, config)
    groups, books = np.asarray(z).reshape(20, 3, 8), np.asarray(codebook["embedding"])
    if config.normalise:  # by cosine
        expected = np.einsum("ngc,gkc->ngk", groups, books).argmax(-1)
    else:
        expected = ((groups[:, :, None] - books[None]) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(result.codes.reshape(20, 3), expected)
    rebuilt = np.stack([books[d][expected[:, d]] for d in range(3)], axis=1).reshape(5, 4, 24)
    np.testing.assert_allclose(result.output, rebuilt, atol=1e-6)
    target = groups / np.linalg.norm(groups, axis=-1, keepdims=True) if config.normalise else groups
    np.testing.assert_allclose(result.residual, target.reshape(5, 4, 24) - rebuilt, atol=1e-6)
    np.testing.assert_allclose(result.commitment, np.mean(np.asarray(result.residual) ** 2), rtol=1e-5)


@pytest.mark.parametrize("config", [PRODUCT, SPHERE])
def test_embedded_product_codes_fill_group_after_group(config):
    codebook, z = init_codebook(config, jax.random.key(0)), _vectors(5, 24)
    result = quantize(codebook, z, config)
    cumulative = embed_codes(codebook, result.codes, config)
    assert cumulative.shape == (5, 3, 24)
    np.testing.assert_allclose(cumulative[:, -1], result.output, atol=1e-6)
    for depth in range(3):
        np.testing.assert_array_equal(cumulative[:, depth, : 8 * (depth + 1)], cumulative[:, -1, : 8 * (depth + 1)])
        assert not np.any(cumulative[:, depth, 8 * (depth + 1) :])


@pytest.mark.parametrize("config", [PRODUCT, SPHERE])
def test_a_group_s_codes_and_codebook_depend_on_that_group_alone(config):
    codebook, z = init_codebook(config, jax.random.key(0)), _vectors(40, 24)
    other = z.at[:, 8:16].set(_vectors(40, 8, seed=5))
    (before, old), (after, new) = (quantize_and_update(codebook, x, config, jax.random.key(1)) for x in (z, other))
    for depth, same in enumerate([True, False, True]):
        assert np.array_equal(before.codes[:, depth], after.codes[:, depth]) == same
        assert np.array_equal(old["embedding"][depth], new["embedding"][depth]) == same


@pytest.mark.parametrize("config", [PRODUCT, SPHERE])
def test_product_updates_per_depth_and_per_step_are_one(config):
    codebook, z = init_codebook(config, jax.random.key(0)), _vectors(40, 24)
    per_depth = dataclasses.replace(config, codebook_update="per_depth")
    (a, one), (b, other) = (quantize_and_update(codebook, z, c, jax.random.key(1)) for c in (config, per_depth))
    np.testing.assert_array_equal(a.codes, b.codes)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, other)


@pytest.mark.parametrize("threshold", [None, 0.05])
def test_normalised_codes_stay_on_the_sphere_and_come_into_use(threshold):
    config = dataclasses.replace(SPHERE, restart_threshold=threshold, decay=0.8)
    codebook, z = init_codebook(config, jax.random.key(0)), _vectors(400, 24) * 5
    length = lambda: np.linalg.norm(codebook["embedding"], axis=-1)  # noqa: E731
    np.testing.assert_allclose(length(), 1, rtol=1e-5)
    first = quantize(codebook, z, config)
    step = jax.jit(lambda c, key: quantize_and_update(c, z, config, key)[1])
    for seed in range(150):  # without restarts the sums of unused codes fade to nothing meanwhile
        codebook = step(codebook, jax.random.key(seed))
    np.testing.assert_allclose(length(), 1, rtol=1e-5)
    last = quantize(codebook, z, config)
    assert last.commitment < 0.8 * first.commitment
    if threshold:
        assert all(len(np.unique(last.codes[:, depth])) > 40 for depth in range(3))


def test_lengths_change_nothing_where_codes_are_normalised():
    codebook, z = init_codebook(SPHERE, jax.random.key(0)), _vectors(6, 24)
    scaled = z * jnp.repeat(jnp.array([0.01, 1.0, 300.0]), 8)
    np.testing.assert_array_equal(quantize(codebook, z, SPHERE).codes, quantize(codebook, scaled, SPHERE).codes)
    gradient = jax.grad(lambda z: (quantize(codebook, z, SPHERE).output ** 2).sum() * 3)(jnp.zeros((2, 24)))
    assert np.isfinite(gradient).all()
    gradient = jax.grad(lambda z: (quantize(codebook, z, SPHERE).output * _vectors(6, 24, seed=2)).sum())(z)
    along = np.einsum("ngc,ngc->ng", np.asarray(gradient).reshape(6, 3, 8), np.asarray(z).reshape(6, 3, 8))
    np.testing.assert_allclose(along, 0, atol=1e-5)
    assert np.abs(gradient).max() > 0.01

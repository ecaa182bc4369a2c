"""A step in several parts of its batch is the step of the whole batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from test_sharding import ROWS, TOLERANCE, assert_close, gradients, mesh_of, random_teacher, smooth_config, two_steps

from dualtoken_jax.config import ConfigError, teacher_config
from dualtoken_jax.config_checks import check
from dualtoken_jax.tasks import make_task
from dualtoken_jax.tasks.accumulate import accumulate


def test_parts_cover_the_batch_and_rows_keep_their_order():
    def look(part):
        return {"mean": part["x"].mean()}, {"rows": part["x"] * 2, "first": part["x"][:, 0]}

    x = jnp.arange(24.0).reshape(12, 2)
    for parts in (1, 2, 3):
        means, rows = jax.jit(lambda x, parts=parts: accumulate(look, {"x": x}, parts))(x)
        assert means["mean"] == x.mean()
        np.testing.assert_array_equal(rows["rows"], x * 2)
        np.testing.assert_array_equal(rows["first"], x[:, 0])


def _with(config, parts: int):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=parts))


def _weights(seed: int) -> dict[str, np.ndarray]:
    """Some rows do not count, and not as many in every part."""
    return {"weight": (np.random.default_rng(seed).uniform(size=ROWS) > 0.3).astype(np.float32)}


def _assert_same(found, expected) -> None:
    (state, history), (expected_state, expected_history) = found, expected
    for (metrics, codes), (expected_metrics, expected_codes) in zip(history, expected_history, strict=True):
        jax.tree.map(np.testing.assert_array_equal, codes, expected_codes)
        for name, value in expected_metrics.items():
            np.testing.assert_allclose(metrics[name], value, rtol=TOLERANCE, err_msg=name)
    assert_close(gradients(state), gradients(expected_state), "gradients")
    for name in ("params", "ema", "codebooks", "discriminator"):
        assert_close(getattr(state, name), getattr(expected_state, name), name)


@pytest.fixture(scope="module")
def tokenizer():
    """A config whose step can be computed in parts exactly, its start, and two steps at once on one device."""
    config = smooth_config()
    loss = dataclasses.replace(config.loss, generator_weight="constant")
    config = dataclasses.replace(config, loss=loss, model=dataclasses.replace(config.model, projection="linear"))
    task, frozen = make_task(config), random_teacher(config)
    state = jax.device_get(jax.jit(task.init_state)(jax.random.key(0), frozen))
    return config, state, jax.device_get(two_steps(task, state, mesh_of(1, 1, 1), _weights))


@pytest.mark.parametrize(
    ("parts", "shape"), [(4, (1, 1, 1)), pytest.param(2, (2, 2, 2), marks=pytest.mark.slow)]
)  # fmt: skip
def test_a_tokenizer_s_step_in_parts_equals_the_whole(parts, shape, tokenizer):
    config, start, expected = tokenizer
    _assert_same(two_steps(make_task(_with(config, parts)), start, mesh_of(*shape), _weights), expected)


def test_the_contrastive_loss_is_that_of_all_pairs():
    config = teacher_config(smooth_config())
    config = dataclasses.replace(config, optimizer=smooth_config().optimizer)
    task = make_task(config)
    start = jax.device_get(jax.jit(task.init_state)(jax.random.key(0), {}))
    found = [two_steps(make_task(_with(config, parts)), start, mesh_of(1, 1, 1), _weights) for parts in (1, 4)]
    _assert_same(found[1], found[0])


def test_what_needs_the_whole_batch_at_once_is_refused():
    config = tiny_config()
    pixel = dataclasses.replace(config.model.pixel, codebook_update="per_depth")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, pixel=pixel))
    check(config)
    with pytest.raises(ConfigError, match="model.pixel.codebook_update 'per_depth' .* train.accumulate=1 instead of 2"):
        check(_with(config, 2))
    with pytest.raises(ConfigError, match="train.batch_size 16 must be divisible by train.accumulate 3"):
        check(_with(tiny_config(), 3))

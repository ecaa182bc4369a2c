"""However the state is split, a step gives what one device gives: loss, gradients, codebooks, codes."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from conftest import tiny_config
from jax.sharding import AxisType

from dualtoken_jax import sharding
from dualtoken_jax.config import teacher_config
from dualtoken_jax.models import bind
from dualtoken_jax.models.dualtoken import forward
from dualtoken_jax.sharding import MeshConfig
from dualtoken_jax.tasks import make_task
from dualtoken_jax.tasks.state import normalise

ROWS = 16
TOLERANCE = 1e-5
SHAPES = [(2, 2, 2)]
SHAPES += [pytest.param(s, marks=pytest.mark.slow) for s in ((8, 1, 1), (1, 8, 1), (4, 2, 1), (1, 1, 8), (1, 2, 4))]


@pytest.fixture(scope="module", autouse=True)
def tiny_arrays_are_split():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "_SMALL", 64)
        yield


def smooth_config():
    config = tiny_config()
    # With a large epsilon an update is as smooth as its gradient; Adam's own turns rounding in a gradient that is zero
    # (a key's bias) into whole steps.
    optimizer = dataclasses.replace(config.optimizer, epsilon=1e-2, warmup_steps=0)
    vision = dataclasses.replace(config.model.siglip.vision, mlp_width=40)  # over 2 devices the smaller axis is split
    siglip = dataclasses.replace(config.model.siglip, vision=vision)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, siglip=siglip),
        loss=dataclasses.replace(config.loss, generator=0.75, discriminator_start=0),
        optimizer=optimizer,
        discriminator=dataclasses.replace(config.discriminator, channels=8, groups=4),
        discriminator_optimizer=dataclasses.replace(optimizer, weight_decay=0.0),
    )


def random_teacher(config) -> dict:
    """Frozen weights that need no training."""
    teacher, rng = make_task(teacher_config(config)), np.random.default_rng(5)
    shapes = jax.eval_shape(teacher.init_state, jax.random.key(0), {}).params
    return {"siglip": jax.tree.map(lambda leaf: (rng.normal(size=leaf.shape) * 0.1).astype(np.float32), shapes)}


def _batch(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (ROWS, 16, 16, 3), dtype=np.uint8),
        "text": rng.integers(0, 300, (ROWS, 20), dtype=np.int32),
        "weight": np.ones(ROWS, np.float32),
    }


def mesh_of(*shape: int):
    devices = jax.devices()[: np.prod(shape)]
    return jax.make_mesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def two_steps(task, state, mesh, change=lambda seed: {}):
    """The state after two steps, the second of which meets dead and living codes; metrics and codes of each.

    `change(seed)` replaces fields of a batch.
    """

    def step(state, batch):
        codes = {}
        if task.config.task == "tokenizer":
            outputs, _ = forward(bind(task.graphdef, state.params), state.codebooks, normalise(batch["image"]))
            codes = {branch: quantized.codes for branch, quantized in outputs.quantized.items()}
        return *task.train_step(state, batch), codes

    with jax.set_mesh(mesh):
        places = sharding.place(state, mesh)
        state, step = jax.device_put(state, places), jax.jit(step, out_shardings=(places, None, None))
        history = []
        for seed in (0, 1):
            state, metrics, codes = step(state, sharding.to_global(_batch(seed) | change(seed), mesh))
            history.append(jax.device_get((metrics, codes)))
    return state, history


@pytest.fixture(scope="module")
def start():
    task = make_task(smooth_config())
    frozen = random_teacher(task.config)
    return task, jax.device_get(jax.jit(task.init_state)(jax.random.key(0), frozen))


@pytest.fixture(scope="module")
def alone(start):
    state, history = two_steps(*start, mesh_of(1, 1, 1))
    return jax.device_get(state), history


def assert_close(found, expected, name: str) -> None:
    """‖a − b‖ ≤ TOLERANCE ‖b‖ for every leaf; one of less than a hundredth of the tree's norm is held to that."""
    norm = np.sqrt(sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(expected)))
    leaves = jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found)
    for (path, b), a in zip(*leaves, strict=True):
        error = np.linalg.norm(np.asarray(a, np.float64) - b) / max(np.linalg.norm(b), norm / 100)
        assert error < TOLERANCE, f"{name}{jax.tree_util.keystr(path)}: {error:.1e}"


def gradients(state) -> dict:
    """The decayed sums of gradients that the optimizers keep."""
    both = {name: getattr(state, name) for name in ("optimizer", "discriminator_optimizer") if getattr(state, name)}
    return {n: optax.tree_utils.tree_get(optimizer, "mu") for n, optimizer in both.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_sharded_equals_unsharded(shape, start, alone):
    mesh = mesh_of(*shape)
    state, history = two_steps(*start, mesh)
    split = {axis for leaf in jax.tree.leaves(state) for axis in jax.tree.leaves(tuple(leaf.sharding.spec)) if axis}
    assert split == {axis for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1}

    expected, expected_history = alone
    for (metrics, codes), (expected_metrics, expected_codes) in zip(history, expected_history, strict=True):
        jax.tree.map(np.testing.assert_array_equal, codes, expected_codes)
        for name, value in expected_metrics.items():
            np.testing.assert_allclose(metrics[name], value, rtol=TOLERANCE, atol=1e-7, err_msg=name)  # cosines near 0
    assert_close(gradients(state), gradients(expected), "gradients")
    for name in ("params", "ema", "codebooks", "discriminator"):
        assert_close(getattr(state, name), getattr(expected, name), name)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=2, tensor=2), (2, 2, 2)),
        (MeshConfig(data=1, fsdp=None), (1, 8, 1)),
        (MeshConfig(data=2, fsdp=1, tensor=None), (2, 1, 4)),
        (MeshConfig(data=4, fsdp=2, tensor=1), (4, 2, 1)),
    ],
)
def test_any_axis_takes_what_the_others_leave(config, expected):
    assert tuple(sharding.make_mesh(config).shape.values()) == expected


@pytest.mark.parametrize("config", [MeshConfig(fsdp=3), MeshConfig(2, 2, 1), MeshConfig(None, None, 2)])
def test_axes_that_do_not_make_up_the_devices_are_refused(config):
    with pytest.raises(
        ValueError, match=f"mesh.fsdp {config.fsdp}.* do not make up the 8 devices; .* None for the one"
    ):
        sharding.make_mesh(config)


def test_matrices_are_split_as_megatron_does_and_stacks_never_along_their_layers():
    mesh = mesh_of(2, 2, 2)
    shapes = {
        "layers": {"query": {"kernel": (2, 32, 32)}, "out": {"kernel": (2, 32, 32)}, "norm": {"scale": (64, 8)}},
        "fc1": {"kernel": (32, 128)},
        "fc2": {"kernel": (128, 32)},
        "odd": (33, 7),
    }
    leaves = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, "float32"), shapes, is_leaf=lambda s: isinstance(s, tuple))
    found = jax.tree.map(lambda place: tuple(place.spec), sharding.place(leaves, mesh))
    assert found == {
        "layers": {
            "query": {"kernel": (None, "fsdp", "tensor")},
            "out": {"kernel": (None, "tensor", "fsdp")},
            "norm": {"scale": (None, None)},
        },
        "fc1": {"kernel": ("fsdp", "tensor")},
        "fc2": {"kernel": ("tensor", "fsdp")},
        "odd": (None, None),
    }


def test_parts_over_fsdp_fill_tiles_where_they_can():
    kernels = {"fc1": (1152, 4304), "fc2": (4304, 1152), "wide": (1152, 4096), "ragged": (1164, 4304)}
    leaves = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in kernels.items()}
    found = {name: tuple(place.spec) for name, place in sharding.place(leaves, mesh_of(2, 4, 1)).items()}
    rows, columns = ("fsdp", None), (None, "fsdp")
    assert found == {"fc1": rows, "fc2": columns, "wide": columns, "ragged": columns}


def test_rows_go_to_their_positions_however_the_devices_stand():
    devices = np.array(jax.devices()).reshape(4, 2, 1)[[2, 0, 3, 1]]
    mesh = jax.sharding.Mesh(devices, sharding.AXES)
    assert sharding.host_rows(16, mesh).tolist() == list(range(16))
    rows = np.arange(48).reshape(16, 3)
    np.testing.assert_array_equal(sharding.to_global({"image": rows}, mesh)["image"], rows)

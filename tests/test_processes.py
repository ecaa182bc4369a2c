"""Two processes of four devices do what one of eight devices does, and each reads the other's checkpoints."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_sharding import TOLERANCE, assert_close, gradients, mesh_of, random_teacher, smooth_config

from dualtoken_jax import loop, sharding
from dualtoken_jax.checkpoint import Checkpoints
from dualtoken_jax.config import to_json
from dualtoken_jax.frozen_weights import save_frozen
from dualtoken_jax.metric_writer import read_metrics
from dualtoken_jax.sharding import MeshConfig
from dualtoken_jax.tasks import make_task

pytestmark = pytest.mark.slow
STEPS = 3

_CHILD = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import conftest, jax, numpy as np
from jax.experimental.multihost_utils import process_allgather
from dualtoken_jax import config, distributed, loop, sharding
from dualtoken_jax.frozen_weights import load_frozen
from dualtoken_jax.data.dataset import open_training

inputs, workdir, output = map(Path, sys.argv[1:])
distributed.join()
assert jax.process_count() == 2 and jax.local_device_count() == 4
sharding._SMALL = 64

class Jax:
    # Programs that start on both processes at once: gloo gives up a process that compiles 30 s longer than the other.
    met = 0
    def __getattr__(self, name):
        return getattr(jax, name)
    def jit(self, function, **options):
        compiled = []
        def call(*arguments):
            if not compiled:
                compiled.append(jax.jit(function, **options).lower(*arguments).compile())
                self.meet()
            return compiled[0](*arguments)
        return call
    def meet(self):
        self.met += 1
        files = [inputs / f"met{self.met}.{i}" for i in range(2)]
        files[jax.process_index()].touch()
        while not all(file.exists() for file in files):
            time.sleep(0.1)

loop.jax = Jax()
settings = config.from_dict(json.loads((inputs / "config.json").read_text()))
state = loop.run(settings, workdir, load_frozen(inputs))
mesh = sharding.make_mesh(settings.mesh)
data = loop.host_batches(open_training(settings.data, settings.seed), settings, mesh, 0)
batch = sharding.to_global(next(data), mesh)
data.close()
leaves = process_allgather((jax.tree.leaves(state), batch["image"]), tiled=True)
if jax.process_index() == 0:
    np.savez(output, *leaves[0], image=leaves[1], held=sharding.host_rows(settings.train.batch_size, mesh))
"""


def _config(mesh: MeshConfig):
    config = smooth_config()
    train = dataclasses.replace(config.train, steps=STEPS, checkpoint_every=STEPS, log_every=1)
    return dataclasses.replace(config, train=train, mesh=mesh)


def _run_on_two(mesh: MeshConfig, frozen: dict, workdir: Path, folder: Path):
    """The leaves of the state that `loop.run` gives on two processes, its first batch, and what process 0 held."""
    folder.mkdir()
    save_frozen(folder, frozen)
    (folder / "config.json").write_text(json.dumps(to_json(_config(mesh))))
    output = folder / "state.npz"
    codes, errors = _start_two(str(folder), str(workdir), str(output))
    assert codes == [0, 0], errors
    found = np.load(output, allow_pickle=False)
    return [found[f"arr_{i}"] for i in range(len(found.files) - 2)], found["image"], found["held"]


def _start_two(*arguments: str) -> tuple[list[int], str]:
    """Exit codes of both processes, and what they wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    shared = os.environ | {"XLA_FLAGS": flags, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    options = {"cwd": Path(__file__).parents[1], "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", _CHILD, *arguments]
    children = [subprocess.Popen(command, env=shared | {"JAX_PROCESS_ID": str(i)}, **options) for i in range(2)]
    errors = [child.communicate(timeout=1200)[1] for child in children]
    return [child.returncode for child in children], "\n".join(errors)


@pytest.fixture(scope="module", autouse=True)
def tiny_arrays_are_split():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "_SMALL", 64)
        yield


@pytest.fixture(scope="module")
def frozen():
    return random_teacher(smooth_config())


@pytest.fixture(scope="module")
def one(frozen, tmp_path_factory):
    """The workdir and last state of a run on one process, everything split over its eight devices."""
    workdir = tmp_path_factory.mktemp("one")
    return workdir, jax.device_get(loop.run(_config(MeshConfig(data=1, fsdp=None)), workdir, frozen))


@pytest.fixture(scope="module")
def two(frozen, one, tmp_path_factory):
    """The same run on two processes: its workdir, the last state, the first batch, the rows of process 0."""
    folder = tmp_path_factory.mktemp("two")
    leaves, image, held = _run_on_two(MeshConfig(data=4, fsdp=2), frozen, folder / "run", folder / "inputs")
    return folder / "run", jax.tree.unflatten(jax.tree.structure(one[1]), leaves), image, held


def _restored(workdir: Path, frozen: dict, mesh):
    """What a run that goes on on `mesh` would start from."""
    task = make_task(_config(MeshConfig()))
    shapes = jax.eval_shape(task.init_state, jax.random.key(0), frozen)
    places = sharding.place(shapes, mesh)
    like = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    return Checkpoints(workdir, read_only=True).restore(like)[0]


def _assert_same_bits(a, b) -> None:
    for x, y in zip(jax.tree.leaves(a.replace(frozen={})), jax.tree.leaves(b.replace(frozen={})), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_two_processes_train_as_one(one, two):
    for found, expected in zip(read_metrics(two[0]), read_metrics(one[0]), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
    assert_close(gradients(two[1]), gradients(one[1]), "gradients")
    for name in ("params", "ema", "codebooks", "discriminator"):
        assert_close(getattr(two[1], name), getattr(one[1], name), name)


def test_rows_stand_at_their_positions(two):
    config = _config(MeshConfig())
    data = loop.host_batches(loop.open_training(config.data, config.seed), config, sharding.make_mesh(config.mesh), 0)
    np.testing.assert_array_equal(two[2], next(data)["image"])
    data.close()
    assert two[3].tolist() == list(range(config.train.batch_size // 2))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_what_two_processes_saved_any_mesh_restores_bitwise(shape, two, frozen):
    mesh = mesh_of(*shape)
    restored = _restored(two[0], frozen, mesh)
    assert all(leaf.sharding.mesh.shape == mesh.shape for leaf in jax.tree.leaves(restored))
    _assert_same_bits(restored, two[1])


def test_what_one_process_saved_two_restore_bitwise(one, frozen, tmp_path):
    leaves, _, _ = _run_on_two(MeshConfig(data=4, fsdp=2), frozen, one[0], tmp_path / "inputs")
    _assert_same_bits(jax.tree.unflatten(jax.tree.structure(one[1]), leaves), one[1])


def test_what_one_device_saved_a_mesh_restores_bitwise(one, frozen, tmp_path):
    state = jax.device_put(one[1], sharding.place(one[1], mesh_of(1, 1, 1)))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {"position": 0})
    checkpoints.close()
    _assert_same_bits(_restored(tmp_path, frozen, mesh_of(1, 8, 1)), one[1])

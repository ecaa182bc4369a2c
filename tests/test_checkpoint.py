"""Checkpoints: damage of any kind is noticed, and the newest sound step is taken."""

import logging
import shutil

import jax
import numpy as np
import pytest

from dualtoken_jax import integrity
from dualtoken_jax.checkpoint import CheckpointError, Checkpoints
from dualtoken_jax.frozen_weights import load_frozen, save_frozen
from dualtoken_jax.tasks.state import TrainState

STEPS = (3, 5)
COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")  # written after the seal, and needed by no restore


def state(step):
    """A state of a few arrays, large and small, that tells its step."""
    rng = np.random.default_rng(step)
    params = {f"layer{n}": {"w": rng.normal(size=(64, 32 * n)).astype(np.float32), "b": np.zeros(3)} for n in (1, 2, 3)}
    tree = TrainState(np.int32(step), params, {"m": params}, {}, np.int32(0), np.int32(0), np.uint32(1))
    return jax.device_put(tree, jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with checkpoints of two steps."""
    workdir = tmp_path_factory.mktemp("written")
    checkpoints = Checkpoints(workdir)
    for step in STEPS:
        checkpoints.save(state(step), {"position": step})
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run")


def restored(workdir, **options):
    """The step that is restored, checked in every leaf."""
    checkpoints = Checkpoints(workdir, **options)
    found, data = checkpoints.restore(like(state(0)))
    step = int(found.step)
    assert data["position"] == step
    jax.tree.map(np.testing.assert_array_equal, found, state(step))
    checkpoints.close()
    return step


def faults(folder, rng):
    """Endless (description, act): a flipped bit, a shorter file, no file; each in a file of the step at random."""
    names = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in COMMIT)
    while True:
        file = names[rng.integers(len(names))]
        data = file.read_bytes()
        bit, cut = int(rng.integers(8 * len(data))), int(rng.integers(len(data)))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield file, [bytes(flipped), data[:cut], None][rng.integers(3)]


def strike(file, contents):
    if contents is None:
        file.unlink()
    else:
        file.write_bytes(contents)


def test_sound_steps_are_sealed_and_the_newest_is_taken(workdir):
    for step in STEPS:
        assert integrity.damage(workdir / "checkpoints" / str(step)) == []
    assert restored(workdir) == 5


def test_every_fault_of_200_is_found(workdir):
    folder, found = workdir / "checkpoints" / "5", 0
    random = faults(folder, np.random.default_rng(0))
    for _ in range(200):
        file, contents = next(random)
        before = file.read_bytes()
        strike(file, contents)
        found += bool(integrity.damage(folder))
        file.write_bytes(before)
    assert found == 200
    assert integrity.damage(folder) == []


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_step_is_put_aside_for_the_one_before(workdir, seed, caplog):
    folder = workdir / "checkpoints" / "5"
    strike(*next(faults(folder, np.random.default_rng(seed))))
    assert restored(workdir, read_only=True) == 3 and folder.exists()
    with caplog.at_level(logging.ERROR):
        assert restored(workdir) == 3
    assert "the checkpoint of step 5 is damaged" in caplog.text
    assert [path.name.split("-")[0] for path in (workdir / "damaged").iterdir()] == ["5"]
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state(5), {"position": 5})  # the same step is done again
    checkpoints.close()
    assert restored(workdir) == 5


@pytest.mark.parametrize("name", COMMIT)
def test_what_is_written_after_the_seal_does_not_matter(workdir, name):
    file = workdir / "checkpoints" / "5" / name
    before = file.read_bytes()
    for contents in (before[:-20], before.replace(b"3", b"7"), b"", None):
        strike(file, contents)
        assert restored(workdir) == 5


def test_where_nothing_is_sound_it_says_so(workdir):
    for step in STEPS:
        (workdir / "checkpoints" / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint in .* is as it was written.*copy"):
        restored(workdir)


def test_frozen_weights_are_checked_and_half_written_ones_made_again(tmp_path):
    frozen = {"siglip": {"w": np.arange(5000, dtype=np.float32)}}
    save_frozen(tmp_path, frozen)
    np.testing.assert_array_equal(load_frozen(tmp_path)["siglip"]["w"], frozen["siglip"]["w"])
    largest = max((tmp_path / "frozen").rglob("*"), key=lambda path: path.stat().st_size)
    strike(largest, largest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="frozen is damaged"):
        load_frozen(tmp_path)
    (tmp_path / "frozen" / integrity.SEAL).unlink(missing_ok=True)
    assert load_frozen(tmp_path) == {}
    save_frozen(tmp_path, frozen)
    np.testing.assert_array_equal(load_frozen(tmp_path)["siglip"]["w"], frozen["siglip"]["w"])


def test_a_file_that_cannot_be_read_is_damage(workdir, monkeypatch):
    real = integrity._digest

    def fails(file):
        if "/5/" in str(file) and file.name.startswith("manifest"):
            raise OSError("input/output error")
        return real(file)

    monkeypatch.setattr(integrity, "_digest", fails)
    assert restored(workdir) == 3

"""The loop: resuming is bitwise, killed or not; stopping saves; a broken run says what is wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from dualtoken_jax import job, loop
from dualtoken_jax.checkpoint import Checkpoints
from dualtoken_jax.config import ConfigError, to_json
from dualtoken_jax.frozen_weights import load_frozen, save_frozen
from dualtoken_jax.metric_writer import read_metrics
from dualtoken_jax.workdir import load_config


def _config(**train):
    config = tiny_config()
    settings = {"steps": 12, "checkpoint_every": 4, "log_every": 2} | train
    loss = dataclasses.replace(config.loss, generator=0.05, discriminator_start=2)
    return dataclasses.replace(config, loss=loss, train=dataclasses.replace(config.train, **settings))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    config = tiny_config()
    return {"siglip": job.teacher_weights(config, tmp_path_factory.mktemp("teacher"))}


@pytest.fixture(scope="module")
def whole(frozen, tmp_path_factory):
    """The workdir of a run that nothing interrupted, and its last state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, jax.device_get(loop.run(_config(), workdir, frozen))


@pytest.fixture(scope="module")
def uninterrupted(whole):
    return whole[1]


def _assert_equal(a, b):
    leaves = jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)
    for (path, x), y in zip(*leaves, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


class _Stop(Exception):
    pass


def test_a_resumed_run_equals_the_uninterrupted_one_in_every_leaf(frozen, uninterrupted, tmp_path, monkeypatch):
    def dies(self, step, metrics):
        if step == 7:
            raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop.Progress, "update", dies)
        with pytest.raises(_Stop):
            loop.run(_config(), tmp_path, frozen)
    assert Checkpoints(tmp_path).latest == 4
    resumed = jax.device_get(loop.run(_config(), tmp_path, load_frozen(tmp_path)))
    _assert_equal(uninterrupted, resumed)
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == sorted(set(steps)) and steps[-1] == 12


def test_a_finished_run_is_not_trained_again(frozen, whole, monkeypatch):
    def trains(*_):
        raise AssertionError("a finished run took a step")

    monkeypatch.setattr(loop, "counted_step", trains)
    workdir, state = whole
    _assert_equal(state, jax.device_get(loop.run(_config(), workdir, frozen)))


def test_everything_is_in_the_checkpoint(frozen, uninterrupted):
    assert uninterrupted.discriminator and uninterrupted.discriminator_optimizer
    assert uninterrupted.codebooks["pixel"]["count"].any() and uninterrupted.ema
    assert int(uninterrupted.step) == 12


def test_another_config_is_refused_with_the_difference(frozen, tmp_path):
    loop.run(_config(steps=2), tmp_path, frozen)
    with pytest.raises(ConfigError, match=r"train.steps: 2 → 3"):
        loop.run(_config(steps=3), tmp_path, frozen)
    loop.run(_config(steps=2, log_every=1), tmp_path, frozen)  # how often it logs is no part of what it is
    assert load_config(tmp_path).train.steps == 2


def test_moved_pictures_are_the_same_and_others_are_refused_with_the_difference(frozen, tmp_path):
    def trained(folder, steps):
        data = dataclasses.replace(_config().data, source="folder", path=str(folder))
        config = dataclasses.replace(_config(steps=steps, checkpoint_every=1), data=data)
        return loop.run(config, tmp_path / "run", frozen)

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number}.png")
    trained(folder, 2)
    moved = folder.rename(tmp_path / "moved")
    trained(moved, 2)
    for file in list(moved.iterdir())[:9]:
        file.unlink()
    with pytest.raises(ValueError, match=r"(?s)other data.*\n  sizes: \[\d+\] → \[\d+\].*\n  sources: .*init_path"):
        trained(moved, 2)


def test_a_run_whose_steps_are_never_finite_stops_and_says_which_terms(frozen, tmp_path):
    config = _config(max_consecutive_skips=3)
    poisoned = jax.tree.map(lambda leaf: leaf * np.nan, frozen)
    with pytest.raises(loop.NonFiniteError, match=r"3 steps in a row.*hidden_mse.*learning_rate"):
        loop.run(config, tmp_path, poisoned)


def test_a_batch_that_the_devices_cannot_share_is_refused(frozen, tmp_path):
    with pytest.raises(ValueError, match="batch_size 12 is not divisible by the 8 devices"):
        loop.run(_config(batch_size=12), tmp_path, frozen)


def test_an_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written.*another --workdir"):
        loop.run(_config(), tmp_path / "file" / "run", {})


_CHILD = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import conftest
from dualtoken_jax import config, job, loop
from dualtoken_jax.frozen_weights import load_frozen
update = loop.Progress.update
loop.Progress.update = lambda *all: (time.sleep(0.3), update(*all))[1]  # so that the parent is in time
inputs, workdir = Path(sys.argv[1]), Path(sys.argv[2])
settings = config.from_dict(json.loads((inputs / "config.json").read_text()))
try:
    loop.run(settings, workdir, load_frozen(inputs))
except loop.Interrupted as stop:
    print(stop)
"""


def _spawn(config, workdir: Path, inputs: Path) -> subprocess.Popen:
    """A run in a process of its own, with the frozen weights in the folder `inputs`."""
    (inputs / "config.json").write_text(json.dumps(to_json(config)))
    command = [sys.executable, "-c", _CHILD, str(inputs), str(workdir)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, env=os.environ)


def _wait_for(condition, process, seconds: float = 240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the child ended or hung before its time"
        time.sleep(0.05)


@pytest.mark.slow
def test_sigterm_saves_at_the_next_step_and_leaves_cleanly(frozen, tmp_path):
    workdir = tmp_path / "run"
    save_frozen(tmp_path, frozen)
    config = _config(steps=1_000_000, checkpoint_every=1_000_000, log_every=1)
    child = _spawn(config, workdir, tmp_path)
    _wait_for(lambda: len(read_metrics(workdir)) > 2, child)
    child.send_signal(signal.SIGTERM)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0 and "the same command resumes" in output
    assert Checkpoints(workdir).latest >= 2


@pytest.mark.slow
def test_kill_minus_9_then_resume_equals_the_uninterrupted_run(frozen, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    save_frozen(tmp_path, frozen)
    child = _spawn(_config(), workdir, tmp_path)
    _wait_for(lambda: (workdir / "checkpoints" / "4").exists(), child)
    child.kill()
    child.wait()
    assert Checkpoints(workdir).latest < 12
    resumed = jax.device_get(loop.run(_config(), workdir, frozen))
    _assert_equal(uninterrupted, resumed)


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(frozen, tmp_path):
    """Saves after every step and dies anywhere after its first one, inside saves too."""
    config = _config(steps=120, checkpoint_every=1)
    whole = jax.device_get(loop.run(config, tmp_path / "whole", frozen))
    workdir, moments = tmp_path / "run", np.random.default_rng(0)
    save_frozen(tmp_path, frozen)
    for _ in range(10):
        before = len(read_metrics(workdir))
        child = _spawn(config, workdir, tmp_path)
        _wait_for(lambda before=before: len(read_metrics(workdir)) != before, child)
        time.sleep(moments.uniform(0, 1.2))
        child.kill()
        child.wait()
    assert Checkpoints(workdir, read_only=True).latest < 120
    _assert_equal(whole, jax.device_get(loop.run(config, workdir, frozen)))

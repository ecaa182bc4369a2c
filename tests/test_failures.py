"""What a run does when it is stopped, hangs, fails to save, or finds values that are not finite."""

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import tiny_config

from dualtoken_jax import goodput, loop, rollbacks, saver, stopping, stragglers
from dualtoken_jax.checkpoint import CheckpointError, Checkpoints
from dualtoken_jax.config import ConfigError
from dualtoken_jax.data.bad_images import BadImageCounter, TooManyBadImages
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.metric_writer import MetricWriter
from dualtoken_jax.rollbacks import Rollbacks, read_rollbacks, write_rollbacks
from dualtoken_jax.workdir import claim_workdir
from dualtoken_jax.workdir_lock import WorkdirLock

ROOT = Path(__file__).parents[1]


def run_python(program: str, *arguments, seconds: float = 60) -> subprocess.CompletedProcess:
    """`python -c PROGRAM ARGUMENTS`, to its end."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)


def contrastive_config(**train):
    """A small contrastive run: the loop with little to compile."""
    config = tiny_config()
    settings = {"steps": 12, "checkpoint_every": 4, "log_every": 1, "ema_decay": None} | train
    return dataclasses.replace(config, task="contrastive", train=dataclasses.replace(config.train, **settings))


HANGING = """
import time
from dualtoken_jax.watchdog import Watchdog
def stuck_in_this_function():
    time.sleep(60)
with Watchdog(floor=0.5) as dog:
    with dog.patience("a compilation", 30):
        time.sleep(1.5)  # longer than the floor, and announced
    for _ in range(5):
        dog.step()
    print("still there", flush=True)
    stuck_in_this_function()
"""


def test_a_hang_ends_with_the_stacks_and_the_code_for_a_restart():
    done = run_python(HANGING)
    assert done.returncode == 75 and done.stdout == "still there\n"
    assert "stuck_in_this_function" in done.stderr and "the run hangs" in done.stderr


def test_slow_steps_raise_the_watchdogs_limit():
    from dualtoken_jax.watchdog import Watchdog

    dog = Watchdog(floor=0.01)
    assert dog.limit == 0.01
    for _ in range(5):
        time.sleep(0.02)
        dog.step()
    assert 0.2 <= dog.limit < 2
    with dog.patience("saving", 1000):
        assert dog.limit == 1000
    assert dog.limit < 2


DEAF = """
import ctypes, os, signal, sys, threading, time
from dualtoken_jax import stopping
stopping.GRACE = 0.2
with stopping.StopRequest() as stop:
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with stop.rescue(lambda: print("rescued", flush=True)):
        ctypes.PyDLL(None).usleep(3_000_000)  # as a compilation that keeps even the interpreter's lock ... for a while
        ctypes.CDLL(None).sleep(30)  # ... and one that gives it away; neither lets Python handle signals
print("never reached")
"""


def test_sigterm_while_the_loop_is_deaf_is_answered_by_the_rescue():
    began = time.monotonic()
    done = run_python(DEAF)
    assert (done.returncode, done.stdout) == (75, "rescued\n"), done.stderr
    assert time.monotonic() - began < 25


HEARING = """
import os, signal, time
from dualtoken_jax import stopping
stopping.GRACE = 1.0
with stopping.StopRequest() as stop:
    with stop.rescue(lambda: print("rescued", flush=True)):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.due()
    time.sleep(2)
print("ended by itself")
"""


def test_a_loop_that_hears_is_left_to_itself():
    done = run_python(HEARING)
    assert (done.returncode, done.stdout) == (0, "ended by itself\n"), done.stderr


def test_two_runs_on_one_workdir_are_refused(tmp_path):
    with WorkdirLock(tmp_path):
        program = "import sys; from dualtoken_jax.workdir_lock import *; WorkdirLock(sys.argv[1], 0.1).__enter__()"
        done = run_python(program, tmp_path)
        assert done.returncode == 1 and "is in use by process" in done.stderr and "another --workdir" in done.stderr
        with pytest.raises(ConfigError, match="in use"):
            WorkdirLock(tmp_path, patience=0.1).__enter__()
    with WorkdirLock(tmp_path, patience=0):
        pass


def test_training_goes_on_while_nothing_can_be_saved(tmp_path, monkeypatch, caplog):
    """A disk that is full from step 3 to step 9: the run goes on and ends with a checkpoint."""
    real, now = Checkpoints.save, []

    def fails(self, state, data):
        now.append(int(state.step))
        if 3 <= now[-1] <= 9:
            raise CheckpointError("no space left on device")
        real(self, state, data)

    monkeypatch.setattr(Checkpoints, "save", fails)
    state = loop.run(contrastive_config(checkpoint_every=2), tmp_path)
    assert int(state.step) == 12 and Checkpoints(tmp_path, read_only=True).latest == 12
    assert now == [2, 4, 5, 6, 7, 8, 9, 10, 12]  # every step while it fails: a tenth of two steps is less than one
    assert "no space left on device. Training goes on" in caplog.text


def test_a_run_that_can_never_save_stops_in_the_end(tmp_path, monkeypatch):
    def fails(self, state, data):
        raise CheckpointError("no space left on device")

    monkeypatch.setattr(Checkpoints, "save", fails)
    monkeypatch.setattr(saver, "PATIENCE", 0.0)
    with pytest.raises(CheckpointError, match="no space"):
        loop.run(contrastive_config(checkpoint_every=1), tmp_path)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    config = contrastive_config()
    state = loop.run(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=1)), tmp_path / "a")
    guards, checkpoints = loop.Guards(tmp_path, config.train), Checkpoints(tmp_path)
    poisoned = state.replace(params=jax.tree.map(lambda leaf: leaf * np.nan, state.params))
    with pytest.raises(saver.NonFiniteState, match="step 1: the state is not finite"):
        saver.Saver(checkpoints, config.train, guards).save(poisoned, {"position": 0})
    assert checkpoints.latest is None


def poisoned_between(first, last):
    """`loop.host_batches`, with labels and text of the rows at these positions spoiled so that every loss is NaN."""
    real = loop.host_batches

    def batches(training, config, mesh, position):
        inner = real(training, config, mesh, position)

        class Spoiled:
            bad, at = inner.bad, position

            def __iter__(self):
                return self

            def __next__(self):
                batch = next(inner)
                if first <= self.at < last:
                    batch = batch | {"weight": batch["weight"] * np.float32(np.nan)}
                self.at += config.train.batch_size
                return batch

            def close(self):
                inner.close()

        return Spoiled()

    return batches


def test_after_repeated_skips_it_goes_back_and_on_behind_the_data(tmp_path, monkeypatch, caplog):
    config = contrastive_config(steps=12, checkpoint_every=4, max_consecutive_skips=3, batch_size=16)
    monkeypatch.setattr(loop, "host_batches", poisoned_between(6 * 16, 10 * 16))
    state = loop.run(config, tmp_path)
    assert int(state.step) == 12 and np.isfinite(jax.tree.leaves(state.params)[0]).all()
    _, data = Checkpoints(tmp_path).restore(jax.tree.map(_like, state))
    # Steps 7, 8 and 9 are skipped; back at step 4 (8 is saved too, with two skips behind it), then on behind them.
    assert data["position"] > 12 * 16 and data["position"] % 16 == 0
    assert "The newest checkpoint is good; examples up to number" in caplog.text


def bad_from(position):
    """`loop.host_batches`, which finds 20 bad pictures in every batch from this position on."""
    real, problem = loop.host_batches, ("/pictures/a.jpg", BadImage("truncated"))

    def batches(training, config, mesh, start):
        inner, at = real(training, config, mesh, start), itertools.count(start, config.train.batch_size)

        class Spoiled:
            bad, close = inner.bad, inner.close

            def __next__(self):
                self.bad.record([problem] * 20 if next(at) >= position else [])
                return next(inner)

        return Spoiled()

    return batches


def test_too_many_bad_pictures_stop_the_run_when_it_has_saved(tmp_path, monkeypatch):
    config = contrastive_config(checkpoint_every=1000)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "host_batches", bad_from(5 * 16))
        with pytest.raises(TooManyBadImages, match=r"(?s)20 of the last 100 images.*a.jpg: truncated.*resumes behind"):
            loop.run(config, tmp_path)
    assert Checkpoints(tmp_path, read_only=True).latest == 6
    assert int(loop.run(config, tmp_path).step) == 12


def test_an_evaluation_of_bad_pictures_stops_the_run_when_it_has_saved(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise TooManyBadImages("all of them")

    monkeypatch.setattr(loop, "evaluate", fails)
    with pytest.raises(TooManyBadImages):
        loop.run(contrastive_config(checkpoint_every=1000, evaluate_every=3), tmp_path)
    assert Checkpoints(tmp_path, read_only=True).latest == 3


def test_one_of_several_processes_asks_all_to_stop_by_the_notice_that_jax_hears(monkeypatch):
    heard = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(stopping.signal, "raise_signal", heard.append)
    with stopping.StopRequest() as stop:
        stop.request()
        stop.request()  # the next batch is as bad
        assert heard == [signal.SIGTERM] and not stop.requested  # JAX says when: at the same step everywhere


def test_an_error_of_another_process_is_told_without_its_pictures():
    counter = BadImageCounter()
    counter.check()
    with pytest.raises(TooManyBadImages, match="another process"):
        counter.check(elsewhere=True)


def _like(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def test_it_goes_back_a_bounded_number_of_times(tmp_path, monkeypatch):
    """Over all starts, each of which goes on behind the examples that the earlier ones passed over."""
    starts, poisoned = [], poisoned_between(0, 10**9)
    monkeypatch.setattr(loop, "host_batches", lambda *given: (starts.append(given[-1]), poisoned(*given))[1])
    for allowed, expected in ((1, 2), (2, 2), (2, 1)):
        starts.clear()
        config = contrastive_config(max_consecutive_skips=2, max_rollbacks=allowed)
        with pytest.raises(loop.NonFiniteError, match=f"2 steps in a row.*going back {allowed} times.*max_rollbacks"):
            loop.run(config, tmp_path)
        assert len(starts) == expected and starts == sorted(set(starts))
    assert starts[0] > 2 * 2 * 16


def test_examples_that_were_passed_over_are_not_met_again_after_a_restart(tmp_path, monkeypatch):
    config = contrastive_config(max_consecutive_skips=3)
    monkeypatch.setattr(loop, "host_batches", poisoned_between(0, 9 * 16))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_rollbacks", dies_after(loop.write_rollbacks))
        with pytest.raises(ZeroDivisionError):
            loop.run(config, tmp_path)
    write_rollbacks(tmp_path, read_rollbacks(tmp_path)._replace(position=9 * 16))
    assert int(loop.run(config, tmp_path).total_skips) == 0
    assert read_rollbacks(tmp_path) == (1, 9 * 16)
    (tmp_path / rollbacks.FILE).write_text("{")
    with pytest.raises(ConfigError, match="rollbacks.json is damaged.*remove it"):
        loop.run(config, tmp_path)


def dies_after(act):
    def dying(*arguments):
        act(*arguments)
        raise ZeroDivisionError

    return dying


def test_other_settings_begin_with_no_rollbacks_behind_them(tmp_path):
    claim_workdir(contrastive_config(), tmp_path)
    write_rollbacks(tmp_path, Rollbacks(3, 100))
    claim_workdir(contrastive_config(), tmp_path)
    assert read_rollbacks(tmp_path) == (3, 100)
    claim_workdir(contrastive_config(steps=13), tmp_path)
    assert read_rollbacks(tmp_path) == (0, 0)


def test_every_second_is_accounted_for(tmp_path):
    began = time.time()
    loop.run(contrastive_config(), tmp_path)
    found = goodput.summarise(goodput.read(tmp_path))
    kinds = sum(found[kind] for kind in goodput.KINDS)
    assert kinds == pytest.approx(found["total"], rel=0.01)
    assert found["total"] >= 0.9 * (time.time() - began) and found["starts"] == 1
    assert found["compile"] > 0 and found["step"] > 0 and found["lost"] == found["down"] == 0


@pytest.mark.parametrize("ready", [True, False])
def test_waiting_beside_a_running_step_is_a_step(ready, tmp_path):
    clock = goodput.Clock(tmp_path)
    clock.step(1, SimpleNamespace(is_ready=lambda: ready))
    clock.interval()
    for kind in ("data", "save"):
        with clock.spend(kind):
            time.sleep(0.01)
    spent = clock.interval()
    assert ("data" in spent) == ready and spent["step"] >= (0 if ready else 0.01) and spent["save"] >= 0.01


def test_goodput_counts_what_was_lost_and_what_was_down():
    def line(attempt, at, done, **spent):
        return {"attempt": attempt, "time": at, "step": done, "spent": spent}

    lines = [
        line(1, 10, 0, start=10.0),
        line(1, 30, 10, step=18.0, save=2.0),
        line(1, 40, 15, step=10.0),  # killed here; step 10 was saved
        line(2, 60, 10, start=8.0, restore=2.0),
        line(2, 61, 11, step=1.0),
        line(2, 90, 40, step=28.0, data=1.0),
    ]
    found = goodput.summarise(lines)
    assert found["total"] == 90 and found["starts"] == 2
    assert (found["lost"], found["down"]) == (10, 10)
    assert found["step"] == 18 + 29 and found["goodput"] == pytest.approx(47 / 90)
    with pytest.raises(ValueError, match="not begun"):
        goodput.summarise([])


def test_the_goodput_command(tmp_path, capsys):
    (tmp_path / goodput.FILE).write_text(
        json.dumps({"attempt": 1, "time": 10, "step": 4, "spent": {"start": 1.0, "step": 9.0}})
        + "\n[1]\n"
        + json.dumps({"attempt": 1, "time": "ten", "step": 4, "spent": {}})
        + "\n{cut sho"
    )
    goodput.main([str(tmp_path)])
    assert "goodput         90.0 %  in 1 starts" in capsys.readouterr().out
    goodput.main([str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["goodput"] == 0.9
    with pytest.raises(SystemExit):
        goodput.main([str(tmp_path / "nowhere")])


def test_slow_hosts_are_named():
    seconds = np.array([[0.01, 0.0, 1.0], [0.01, 0.0, 1.0], [0.5, 0.0, 0.5], [0.02, 0.0, 1.0]])
    assert stragglers.describe(seconds) == "host 2 takes 0.500 s per step for data, the median host 0.015 s"
    assert stragglers.describe(seconds[:2]) == ""


def test_guards_leave_no_thread_behind(tmp_path):
    before = threading.active_count()
    loop.run(contrastive_config(steps=2), tmp_path)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name in ("signals", "watchdog", "data")]


def test_a_last_save_that_fails_is_done_again(tmp_path, monkeypatch):
    real, asked = Checkpoints.save, []

    def fails_once(self, state, data):
        asked.append(int(state.step))
        if asked.count(2) == 1 and asked[-1] == 2:
            raise CheckpointError("no space left on device")
        real(self, state, data)

    monkeypatch.setattr(Checkpoints, "save", fails_once)
    monkeypatch.setattr(saver, "_PAUSE", 0.0)
    loop.run(contrastive_config(steps=2), tmp_path)
    assert asked == [2, 2] and Checkpoints(tmp_path, read_only=True).latest == 2


def test_metrics_that_cannot_be_written_do_not_end_the_run(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = MetricWriter(tmp_path)
    writer.write_scalars(1, {"loss": 1.0})
    writer.close()
    assert "the metrics of step 1 are lost" in caplog.text


def test_a_notice_among_several_processes_is_not_forgotten(monkeypatch):
    answers = iter([False, True, False, False])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(stopping.multihost_utils, "reached_preemption_sync_point", lambda moment: next(answers))
    with stopping.StopRequest() as stop:
        assert [stop.due() for _ in range(4)] == [False, True, True, True]

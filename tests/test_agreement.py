"""Several processes do alike what the first one finds, its errors included; the other processes are mostly fakes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dualtoken_jax import agreement, frozen_weights
from dualtoken_jax.agreement import anywhere, by_first
from dualtoken_jax.checkpoint import CheckpointError
from dualtoken_jax.config import ConfigError
from dualtoken_jax.workdir_lock import FILE, WorkdirLock


@pytest.fixture
def process(monkeypatch):
    """Makes this process the one of that number, of two; what process 0 tells, process 1 hears afterwards."""
    said = []

    def broadcast(array):
        if jax.process_index() == 0:
            said.append(np.array(array))
            return said[-1]
        assert array.shape == said[0].shape and array.dtype == said[0].dtype  # or the devices would hang
        return said.pop(0)

    def become(number):
        monkeypatch.setattr(jax, "process_index", lambda: number)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement.multihost_utils, "broadcast_one_to_all", broadcast)
    return become


def never():
    raise AssertionError("only process 0 acts")


@pytest.mark.parametrize("answer", [None, True, 7, 10**15, "drei Bäume", {"count": 2, "position": 2**40}])
def test_all_have_the_answer_of_the_first(process, answer):
    process(0)
    assert by_first(lambda: answer, ValueError) == answer
    process(1)
    assert by_first(never, ValueError) == answer


def test_an_error_of_the_first_ends_all_with_the_same_words(process):
    def fails():
        raise PermissionError("no access to /ü" + "x" * 5000)

    process(0)
    with pytest.raises(PermissionError, match="no access to /ü"):
        by_first(fails, CheckpointError)
    process(1)
    with pytest.raises(CheckpointError, match=r"no access to /ü.*process 0"):
        by_first(never, CheckpointError)


def test_any_process_is_enough(monkeypatch):
    assert [anywhere(True), anywhere(False)] == [True, False]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement.multihost_utils, "process_allgather", lambda mine: np.stack([mine, np.array(True)]))
    assert anywhere(False)


@pytest.mark.parametrize(("sealed", "expected"), [([True, False], []), ([False, True], [0, 1])])
def test_frozen_weights_are_written_by_all_or_by_none(sealed, expected, process, monkeypatch, tmp_path):
    """Storage shows another process the seal later than the first, or sooner; all do what the first one sees."""
    written = []

    class Checkpointer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def save(self, path, frozen):
            written.append(jax.process_index())
            path.mkdir(exist_ok=True)

    monkeypatch.setattr(frozen_weights.ocp, "StandardCheckpointer", Checkpointer)
    monkeypatch.setattr(frozen_weights.integrity, "is_sealed", lambda path: sealed[jax.process_index()])
    for number in (0, 1):
        process(number)
        frozen_weights.save_frozen(tmp_path, {})
    assert written == expected


def test_a_workdir_in_use_is_refused_on_all_processes(process, tmp_path):
    process(0)
    with WorkdirLock(tmp_path, patience=0):
        process(1)
        with WorkdirLock(tmp_path, patience=0):  # of the same run: it hears that the first one has the lock
            pass
        assert (tmp_path / FILE).read_text().startswith("process ")
        for number in (0, 1):
            process(number)
            with pytest.raises(ConfigError, match=r"is in use by process \d+ on .*another --workdir"):
                WorkdirLock(tmp_path, patience=0).__enter__()


TWO = """
import sys, time
sys.path.insert(0, "tests")
import conftest, jax
from dualtoken_jax import distributed
from dualtoken_jax.agreement import anywhere, by_first
from dualtoken_jax.stopping import StopRequest

def fails():
    raise PermissionError("no access")

distributed.join()
print(by_first(lambda: [jax.process_index(), "ü"], ValueError), anywhere(jax.process_index() == 1), anywhere(False))
try:
    by_first(fails, ValueError)
except (PermissionError, ValueError) as error:
    print(error)
with StopRequest() as stop:
    for step in range(1000):
        if stop.due():
            break
        if step >= 3 and jax.process_index() == 1:
            stop.request()
        anywhere(False)  # a step
        time.sleep(0.02)
print(step)
"""


def test_two_real_processes_agree_and_stop_at_the_same_step():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    options = {"cwd": Path(__file__).parents[1], "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", TWO]
    children = [subprocess.Popen(command, env=shared | {"JAX_PROCESS_ID": str(i)}, **options) for i in range(2)]
    told = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    lines = [[line for line in output.splitlines() if not line.startswith("[Gloo]")] for output, _ in told]
    assert lines[0][0] == lines[1][0] == "[0, 'ü'] True False"
    assert lines[0][1] == "no access" and lines[1][1] == "no access (found by process 0)"
    assert lines[0][2] == lines[1][2] and 3 < int(lines[0][2]) < 999

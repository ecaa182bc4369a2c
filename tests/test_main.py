"""What a person and a launcher see of a wrong command: one line that says what to do, and the documented code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dualtoken_jax import distributed, exit_codes, job

ROOT = Path(__file__).parents[1]


def run(*flags: str) -> tuple[int, str]:
    """Exit code and stderr of the program."""
    return run_with({}, *flags)


def run_with(environment: dict[str, str], *flags: str) -> tuple[int, str]:
    """The same with these variables."""
    command, environment = [sys.executable, "-m", "dualtoken_jax.main", *flags], os.environ | environment
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.train.stepps=3"], r"no setting is called 'stepps'.*steps.*config.py lists"),
        (["--config=configs/tokenizer.py", "--config.nosuch=3"], r"no setting is called 'nosuch'"),
        (["--config.train.steps=abc"], r"--config.train.steps=abc: invalid literal"),
        (["--config=nosuch.py"], r"the recipe cannot be read: .*'nosuch.py'"),
        (["--config=configs/tokenizer.py:nosuch"], r"has no recipe 'nosuch'; there are demo,"),
        (["--wrokdir=x"], r"Unknown command line flag 'wrokdir'.*workdir"),
        (["extra"], r"unknown arguments \['extra'\]; settings look like"),
    ],
)
def test_wrong_flags_are_one_line(flags, said):
    code, errors = run(*flags)
    assert code == exit_codes.USAGE, errors
    assert errors.startswith("error: ") and len(errors.splitlines()) == 1
    assert re.search(said, errors), errors


def test_help_names_both_flags():
    command = [sys.executable, "-m", "dualtoken_jax.main", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout
    assert "--config" in told and "--workdir" in told and "VARIANT" in told


def test_expected_errors_are_one_line_and_the_code_for_no_restart(tmp_path):
    code, errors = run(f"--workdir={tmp_path}", "--config.data.source=folder", "--config.data.path=nowhere")
    assert (code, errors) == (exit_codes.FAILED, "error: there is no image folder nowhere\n")


def test_wrong_numbers_of_processes_are_named():
    code, errors = run_with({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "x"})
    assert code == exit_codes.FAILED and errors.startswith("error: JAX_NUM_PROCESSES is 'x', which is no number. ")
    code, errors = run_with({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2"})
    assert code == exit_codes.FAILED and "The process id of the current process must be defined" in errors
    assert errors.startswith("error: this process cannot join") and len(errors.splitlines()) == 1


def test_devices_that_are_not_there_are_one_line():
    code, errors = run_with({"JAX_PLATFORMS": "tpu"})
    assert code == exit_codes.FAILED and errors.splitlines()[-1].endswith("JAX_PLATFORMS is tpu"), errors
    assert "Traceback" not in errors


def test_a_librarys_error_is_a_mistake_here_and_keeps_its_traceback(monkeypatch):
    def expected(act):
        with pytest.raises(ValueError) as caught:
            act()
        return job.is_expected(caught.value)

    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    assert expected(lambda: distributed._number("JAX_NUM_PROCESSES"))
    assert not expected(lambda: json.loads("{"))
    assert not expected(lambda: jnp.broadcast_to(np.zeros(2), (3,)))
    assert job.is_expected(OSError("no space left on device")) and not job.is_expected(RuntimeError("?"))

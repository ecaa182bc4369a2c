"""Mutated pictures: only BadImage comes out, in little time and memory, and both JPEG decoders agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def fuzz(count, seed):
    """What fuzz_images.py prints, from a process that a crash or a hang of C code may end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "fuzz_images.py"), str(count), str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert sum(found["outcomes"].values()) == count
    return found


def check(found, count):
    # The mutations reach the decoders: some files survive, and the rest fail at every gate.
    assert found["outcomes"]["good"] > count / 50
    for reason in ("truncated", "undecodable", "not-an-image", "too-many-pixels", "extreme-aspect", "empty"):
        assert found["outcomes"].get(reason, 0) > 0, found
    assert found["peak_mib"] < 2048, found


def test_a_few_thousand_mutated_pictures():
    check(fuzz(4_000, 0), 4_000)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_pictures():
    check(fuzz(120_000, 1), 120_000)

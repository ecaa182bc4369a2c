"""How soon the demo trains again after kill -9, and what share of the time is of use with a failure every 2 hours.

    python -m benchmarks.restart --teacher=runs/demo/teacher

Starts the README's command on a workdir with that finished teacher, kills it at random moments (never before a first
checkpoint, and over more than the time between two of them, so that the work lost is typical) and starts it again at
once. Restart: from the kill to the first new step in the run's goodput.jsonl, which has a line a second. The estimate
takes what these failures cost, and scales their number, not their cost.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import circumstances
from dualtoken_jax import goodput

RESULT = Path("benchmarks/results/restart.json")
_STARTING = ("start", "restore", "compile", "down")
_BETWEEN = ("step", "evaluate", "data", "transfer", "save")


def start(workdir: Path, log) -> subprocess.Popen:
    """The demo, in a process group of its own."""
    command = [sys.executable, "-m", "dualtoken_jax.main", "--config=configs/tokenizer.py:demo", f"--workdir={workdir}"]
    command += ["--config.train.steps=100000"]  # lest it end before the last kill
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def first_step_after(workdir: Path, process: subprocess.Popen, moment: float) -> float:
    """Waits for a step of a start that began after that moment; when it was written down."""
    while process.poll() is None:
        lines = [line for line in goodput.read(workdir) if line["attempt"] > moment and line["step"] is not None]
        new = [line for line in lines if line["step"] > lines[0]["step"]]  # the first says where it goes on from
        if new:
            return new[0]["time"]
        time.sleep(0.2)
    raise SystemExit(f"the run ended by itself with exit code {process.returncode}; see {workdir}.log")


def run(workdir: Path, kills: int, longest: float, seed: int) -> list[float]:
    """Seconds from each kill to the first new step; the last start is asked to stop."""
    dice, found, died = random.Random(seed), [], time.time()
    with Path(f"{workdir}.log").open("w") as log:
        for number in range(kills + 1):
            process = start(workdir, log)
            began = first_step_after(workdir, process, died)
            found += [began - died] if number else []
            while not any((workdir / "checkpoints").glob("[0-9]*")) and process.poll() is None:
                time.sleep(0.2)
            time.sleep(dice.uniform(0, longest))
            os.killpg(process.pid, signal.SIGKILL if number < kills else signal.SIGTERM)
            died = time.time()
            process.wait(timeout=300)
    return found


def estimate(spent: dict[str, float], hours: float) -> dict[str, float]:
    """Shares of the time, from a run's summary: of use between failures, and with a failure every so many hours."""
    starting = sum(spent[kind] for kind in _STARTING) / spent["starts"]
    per_failure = starting + spent["lost"] / (spent["starts"] - 1)
    useful = sum(spent[kind] for kind in goodput.USEFUL) / sum(spent[kind] for kind in _BETWEEN)
    return {
        "seconds_per_failure": per_failure,
        "share_of_use_between_failures": useful,
        "goodput": useful * (1 - per_failure / (3600 * hours)),
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="the folder `teacher` of a finished demo")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--longest", type=float, default=100.0, help="seconds of training before a kill, at most")
    parser.add_argument("--hours", type=float, default=2.0, help="between failures, for the estimate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="restart") as folder:
        workdir = Path(folder) / "demo"
        shutil.copytree(flags.teacher, workdir / "teacher")
        restarts = run(workdir, flags.kills, flags.longest, flags.seed)
        spent = goodput.summarise(goodput.read(workdir))
    found = circumstances("benchmarks.restart") | {
        "seconds_from_kill_to_first_step": restarts,
        "median": statistics.median(restarts),
        "longest": max(restarts),
        "seconds": spent,
        f"with a failure every {flags.hours:g} hours": estimate(spent, flags.hours),
    }
    flags.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

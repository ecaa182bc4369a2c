"""python tests/chaos.py --kills=50 --output=FILE: kills a training run at random and compares it with one left alone.

A launcher's loop starts the real command again and again. Meanwhile its main process or its data worker is killed (kill
-9), or asked to stop (SIGTERM), at a random moment, every third time inside a save. At last it may finish. Then every
logged loss and every leaf of the last checkpoint must be the same, bit for bit, as in a run that nobody touched.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
_LONGEST = 15.0  # seconds from a start to the next blow


def start(workdir: Path, log) -> subprocess.Popen:
    """The command, in a process group of its own."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "cache")}
    command = [sys.executable, "-m", "dualtoken_jax.main", f"--config={ROOT / 'tests/chaos_config.py'}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )


def worker_of(process: subprocess.Popen) -> int | None:
    """A data worker of the run, if it has one now."""
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "multiprocessing.spawn"], capture_output=True, text=True
    )
    return int(found.stdout.split()[0]) if found.stdout.split() else None


def strike(process: subprocess.Popen, workdir: Path, dice: random.Random) -> str:
    """Waits for the moment and strikes; what was done."""
    inside_a_save = dice.random() < 1 / 3
    deadline = time.monotonic() + (4 * _LONGEST if inside_a_save else dice.uniform(0, _LONGEST))
    while time.monotonic() < deadline and process.poll() is None:
        if inside_a_save and any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
            break
        time.sleep(0.002)
    if process.poll() is not None:
        return "ended by itself"
    kind = dice.choice(["kill", "kill", "kill the worker", "terminate"])
    where = " inside a save" if inside_a_save else ""
    if kind == "kill the worker" and (worker := worker_of(process)):
        os.kill(worker, signal.SIGKILL)
        return kind + where
    process.send_signal(signal.SIGTERM if kind == "terminate" else signal.SIGKILL)
    return ("terminate" if kind == "terminate" else "kill") + where


def run(workdir: Path, kills: int, seed: int) -> dict:
    """Trains to the end through so many blows; what happened."""
    workdir.mkdir(parents=True)
    dice, blows, codes, stops = random.Random(seed), [], [], []
    with (workdir.parent / f"{workdir.name}.log").open("w") as log:
        while True:
            process = start(workdir, log)
            if len(blows) < kills and (blow := strike(process, workdir, dice)) != "ended by itself":
                blows.append(blow)
                struck = time.monotonic()
                code = process.wait(timeout=300)
                if blow.startswith("terminate"):
                    stops.append(time.monotonic() - struck)
            else:
                code = process.wait()
            codes.append(code)
            if code == 0:
                return {"blows": blows, "exit_codes": codes, "seconds_from_sigterm_to_exit": stops}
            if code not in (75, -signal.SIGKILL, -signal.SIGTERM):
                raise SystemExit(f"exit code {code} after {blows[-1:]}; see {log.name}")


def losses(workdir: Path) -> list[tuple]:
    """(step, loss, …) as logged, times left out."""
    from dualtoken_jax.metric_writer import read_metrics

    timed = ("images_per_second", "seconds_per_step")
    lines = [line for line in read_metrics(workdir) if "loss" in line]
    return [tuple(sorted((k, v) for k, v in line.items() if not k.startswith(timed))) for line in lines]


def state(workdir: Path) -> dict:
    """Every leaf of the newest checkpoint, frozen weights left out."""
    import jax

    from dualtoken_jax import job
    from dualtoken_jax.workdir import load_config

    found = jax.device_get(job.load_state(load_config(workdir), workdir)).replace(frozen={})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(found)}


def compare(alone: Path, struck: Path) -> dict:
    """Whether both ended the same."""
    first, second = losses(alone), losses(struck)
    left, right = state(alone), state(struck)
    same = [name for name in left if np.array_equal(left[name], right[name], equal_nan=True)]
    return {
        "logged_steps": len(first),
        "logged_steps_equal": sum(a == b for a, b in zip(first, second, strict=True)),
        "leaves": len(left),
        "leaves_equal": len(same),
    }


def costs(workdir: Path) -> dict[str, float]:
    """Seconds by kind. Steps this short say nothing of a real run's goodput: benchmarks.restart does."""
    from dualtoken_jax import goodput

    return {name: round(value, 3) for name, value in goodput.summarise(goodput.read(workdir)).items()}


def main() -> None:
    """Prints the outcome as JSON; exit code 1 where the two runs differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder when left out")
    parser.add_argument("--output", type=Path, help="JSON file for the outcome")
    flags = parser.parse_args()
    folder = (flags.folder or Path(tempfile.mkdtemp(prefix="chaos"))).absolute()
    began = time.time()
    run(folder / "alone", 0, flags.seed)
    happened = run(folder / "struck", flags.kills, flags.seed)
    found = {"command": f"python tests/chaos.py --kills={flags.kills} --seed={flags.seed}"}
    found |= {"date": time.strftime("%F"), "seconds": round(time.time() - began)}
    found |= {
        "outcome": compare(folder / "alone", folder / "struck"),
        "seconds_by_kind": costs(folder / "struck"),
        **happened,
    }
    text = json.dumps(found, indent=1)
    print(text)
    if flags.output:
        flags.output.write_text(text + "\n")
    outcome = found["outcome"]
    same = outcome["logged_steps_equal"] == outcome["logged_steps"] and outcome["leaves_equal"] == outcome["leaves"]
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()

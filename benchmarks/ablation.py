"""What every ablation does: variants from one shared teacher at equal steps, and a table of their figures."""

import argparse
import datetime
import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev


def main(name: str, description: str | None, variants: Sequence[str], metrics: Sequence[str]) -> None:
    """Runs what is missing in --workdir, the main command in a process of its own each, and writes the results."""
    arguments = _parser(name, description, variants).parse_args()
    tasks = [(variant, seed) for seed in range(arguments.seeds) for variant in arguments.variants]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        done = list(pool.map(lambda task: run(*task, arguments), tasks))
    runs = {v: [d for (variant, _), d in zip(tasks, done, strict=True) if variant == v] for v in arguments.variants}
    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "steps": arguments.steps,
        "runs": runs,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    table = summary(runs, metrics)
    arguments.output.with_suffix(".md").write_text(f"{table}\n\n{caption(record)}\n")
    print(table)


def _parser(name: str, description: str | None, variants: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="workdir of the shared teacher")
    parser.add_argument("--workdir", type=Path, default=Path("runs") / name)
    parser.add_argument("--output", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--variants", nargs="+", choices=variants, default=list(variants), help="some of them only")
    return parser


def run(variant: str, seed: int, arguments: argparse.Namespace) -> dict:
    """The evaluation of one variant and seed."""
    workdir = arguments.workdir / f"{variant}-{seed}"
    results = workdir / "evaluation.json"
    settings = {
        "seed": seed,
        "teacher.path": str(arguments.teacher),
        "train.steps": arguments.steps,
        "data.eval_examples": 1024,
        "loss.discriminator_start": int(0.8 * arguments.steps),
    }
    if results.exists():
        check_reuse(workdir, settings)
    else:
        command = [sys.executable, "-m", "dualtoken_jax.main", f"--config=configs/tokenizer.py:{variant}"]
        command += [f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in settings.items())]
        # One compilation for the seeds of a variant.
        cache = {"JAX_COMPILATION_CACHE_DIR": str(arguments.workdir.absolute() / "compilation_cache")}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | cache)
    return json.loads(results.read_text())


def check_reuse(workdir: Path, settings: dict) -> None:
    """Ends the program, naming the difference, unless the run in `workdir` was made with these settings."""
    config = json.loads((workdir / "config.json").read_text())
    for name, wanted in settings.items():
        found = functools.reduce(lambda part, key: part[key], name.split("."), config)
        same = Path(found).resolve() == Path(wanted).resolve() if name.endswith("path") else found == wanted
        if not same:
            sys.exit(f"error: {workdir} was made with {name} {found!r}, not {wanted!r}; remove it or use --workdir")


def summary(runs: dict[str, list[dict]], metrics: Sequence[str]) -> str:
    """A Markdown table of mean ± standard deviation over the seeds."""
    lines = ["| variant | " + " | ".join(metrics) + " |", "|" + "---|" * (len(metrics) + 1)]
    for variant, results in runs.items():
        cells = []
        for name in metrics:
            values = [result[name] for result in results if name in result]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}" if values else "–")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def caption(record: dict) -> str:
    """Where the figures come from, in one line."""
    seeds = max(map(len, record["runs"].values()))
    return f"{record['steps']} steps, {seeds} seeds, {record['date']}, {record['machine']}: `{record['command']}`"


def machine() -> str:
    """The processor's name where the system tells it, and how many cores there are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"

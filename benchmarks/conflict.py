"""The paper's conflict, small: one vocabulary or two, shallow or deep, from one teacher at equal steps.

    python benchmarks/conflict.py --teacher=runs/demo/teacher --output=benchmarks/results/conflict.json

Every run is the main command in a process of its own; runs that are already in --workdir are not repeated.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

VARIANTS = ("demo", "demo_single", "demo_dual_deep", "demo_pixel_only", "demo_semantic_only")
METRICS = ("psnr", "ssim", "frechet_teacher", "zero_shot_top1", "teacher_zero_shot_top1", "cosine_pooled")


def run(variant: str, seed: int, arguments: argparse.Namespace) -> dict:
    """The evaluation of one variant and seed."""
    workdir = arguments.workdir / f"{variant}-{seed}"
    results = workdir / "evaluation.json"
    if not results.exists():
        command = [sys.executable, "-m", "dualtoken_jax.main", f"--config=configs/tokenizer.py:{variant}"]
        command += [f"--workdir={workdir}", f"--config.seed={seed}", f"--config.teacher.path={arguments.teacher}"]
        command += [f"--config.train.steps={arguments.steps}", "--config.data.eval_examples=1024"]
        command += [f"--config.loss.discriminator_start={int(0.8 * arguments.steps)}"]
        # One compilation for the seeds of a variant.
        cache = {"JAX_COMPILATION_CACHE_DIR": str(arguments.workdir.absolute() / "compilation_cache")}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | cache)
    return json.loads(results.read_text())


def summary(runs: dict[str, list[dict]]) -> str:
    """A Markdown table of mean ± standard deviation over the seeds."""
    lines = ["| variant | " + " | ".join(METRICS) + " |", "|" + "---|" * (len(METRICS) + 1)]
    for variant, results in runs.items():
        cells = []
        for name in METRICS:
            values = [result[name] for result in results if name in result]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}" if values else "–")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="workdir of the shared teacher")
    parser.add_argument("--workdir", type=Path, default=Path("runs/conflict"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/conflict.json"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    tasks = [(variant, seed) for seed in range(arguments.seeds) for variant in VARIANTS]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        done = list(pool.map(lambda task: run(*task, arguments), tasks))
    runs = {variant: [d for (name, _), d in zip(tasks, done, strict=True) if name == variant] for variant in VARIANTS}
    record = {"command": " ".join(["python", *sys.argv]), "machine": platform.machine(), "runs": runs}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(summary(runs) + "\n")
    print(summary(runs))


if __name__ == "__main__":
    main()

"""python -m dualtoken_jax.data.benchmark --folder=DIR [--json=FILE]          decoder, loader, PyTorch's loader
python -m dualtoken_jax.data.benchmark --folder=DIR --loader_only            our loader, with memory over --batches
python -m dualtoken_jax.data.benchmark --config=configs/tokenizer.py:demo    loader, and steps with real and one batch

Pictures per second of decode and random crop alone, of the loader, and, where torch is installed, of a PyTorch
DataLoader on the same files with as many workers; requests per picture, memory over time; milliseconds a training step
takes with the recipe's data and with one batch that is there. Loaders run in turns, each in a process of its own.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np

from dualtoken_jax.data import manifest
from dualtoken_jax.data.benchmark import decoder, loader
from dualtoken_jax.data.images import Decoding
from dualtoken_jax.data.reading import Reading
from dualtoken_jax.data.shards import Shards
from dualtoken_jax.data.sources import Example, Folder
from dualtoken_jax.flags import positive

DECODINGS = typing.get_args(Decoding)
SAMPLE = 256  # files that the decoder alone is measured on
PEERS = {"torch_normalised": [], "torch_uint8": ["--uint8"]}


def main(arguments: list[str] | None = None) -> None:
    """Flags → measurements → a table, and JSON."""
    flags = _parser().parse_args(arguments)
    if flags.loader_only and flags.folder:
        print(json.dumps(loader.measure(_setting(flags), flags.batches)))
        return
    record = {
        "command": " ".join(
            ["python -m dualtoken_jax.data.benchmark", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "load_before": os.getloadavg()[0],
    }
    try:
        record |= _with_folder(flags) if flags.folder else _with_config(flags)
    except (OSError, ValueError, RuntimeError) as error:  # job.EXPECTED_ERRORS without importing jax
        sys.exit(f"error: {error}")
    record["load_after"] = os.getloadavg()[0]
    if flags.json:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        flags.json.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(_lines(record)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dualtoken_jax.data.benchmark", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--folder", type=Path, help="pictures, or a prepared dataset, to decode, crop and load")
    what.add_argument("--config", help="recipe whose data and step are measured, FILE.py:VARIANT")
    parser.add_argument(
        "--decoding", choices=DECODINGS, default="exact", help="of --loader_only; else both are measured"
    )
    parser.add_argument("--resolution", type=positive, default=384, help="of the crops of --folder")
    parser.add_argument("--batch_size", type=positive, default=64, help="of the loaders on --folder")
    parser.add_argument("--threads", type=positive, default=2, help="ours, and the DataLoader's worker processes")
    parser.add_argument("--workers", type=int, default=0, help="our worker processes, each with as many threads")
    parser.add_argument("--batches", type=positive, default=20, help="measured in each turn, after a warm-up")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement of the decoder alone")
    parser.add_argument("--steps", type=positive, default=30, help="in each turn of --config")
    parser.add_argument("--repeats", type=positive, default=5, help="turns of each; medians are reported")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("--loader_only", action="store_true", help="measure our loader on --folder once, print JSON")
    return parser


def _setting(flags: argparse.Namespace) -> loader.Setting:
    reading = Reading(threads=flags.threads, workers=flags.workers)
    return loader.Setting(_source(flags), flags.resolution, flags.batch_size, flags.decoding, reading, augment=True)


def _source(flags: argparse.Namespace) -> Folder | Shards:
    return Shards(flags.folder, "all") if _is_prepared(flags) else Folder(flags.folder, "all")


def _is_prepared(flags: argparse.Namespace) -> bool:
    return (flags.folder / manifest.FILE).exists()


def _with_folder(flags: argparse.Namespace) -> dict[str, Any]:
    source = _source(flags)
    examples = source.read(np.arange(min(len(source), SAMPLE)))
    files = decoder.usable([one.image for one in examples if isinstance(one, Example)])
    found: dict[str, Any] = {"pictures": len(source), "mean_bytes": sum(map(len, files)) / len(files)}
    found["decoder"] = {
        f"{decoding}_{threads}_threads": decoder.rate(files, flags.resolution, decoding, threads, flags.seconds)
        for decoding in DECODINGS
        for threads in sorted({1, flags.threads})
    }
    return found | {"loaders": _loaders(flags)}


def _loaders(flags: argparse.Namespace) -> dict[str, Any]:
    """In turns, so that whatever else the machine does meets all of them alike."""
    same = [f"--{name}={getattr(flags, name)}" for name in ("folder", "resolution", "batch_size", "batches")]
    reading = [f"--threads={flags.threads}", f"--workers={flags.workers}"]
    ours = ["dualtoken_jax.data.benchmark", *same, *reading, "--loader_only"]
    commands = {decoding: [*ours, f"--decoding={decoding}"] for decoding in DECODINGS}
    if all(map(importlib.util.find_spec, ("torch", "torchvision"))) and not _is_prepared(flags):
        peer = ["dualtoken_jax.data.benchmark.peer", *same, f"--workers={flags.threads * max(flags.workers, 1)}"]
        commands |= {name: peer + more for name, more in PEERS.items()}
    turns = [{name: _run(command) for name, command in commands.items()} for _ in range(flags.repeats)]
    return _compared(turns) | {"last_turn": {decoding: turns[-1][decoding] for decoding in DECODINGS}}


def _compared(turns: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and how many times as good ours are as the peers', by pictures per second and by CPU time a picture."""
    found: dict[str, Any] = {}
    for figure, better in (("pictures_per_second", 1), ("cpu_ms_per_picture", -1)):
        values = {name: [turn[name][figure] for turn in turns] for name in turns[0]}
        median = {name: statistics.median(some) for name, some in values.items()}
        ratios = {
            f"{ours}_over_{peer}": (median[ours] / median[peer]) ** better
            for ours in DECODINGS
            for peer in PEERS
            if peer in median
        }
        found[figure] = {"median": median, **ratios, "turns": values}
    return found


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"python -m {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _with_config(flags: argparse.Namespace) -> dict[str, Any]:
    from dualtoken_jax.config import from_dict
    from dualtoken_jax.config_checks import check
    from dualtoken_jax.data.benchmark import steps
    from dualtoken_jax.data.dataset import open_source

    file, _, variant = flags.config.partition(":")
    specification = importlib.util.spec_from_file_location("recipe", file)
    if specification is None or not Path(file).exists():
        raise OSError(f"there is no recipe {file}; --config takes FILE.py or FILE.py:VARIANT")
    sys.path.insert(0, "")  # recipes import one another as `configs.…`
    recipe = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(recipe)
    config = check(from_dict(recipe.get_config(*[variant] if variant else [])))
    data, size = config.data, config.model.siglip.image_size
    source = open_source(data, config.seed, "train")  # of a mixture the first
    setting = loader.Setting(source, size, config.train.batch_size, data.decoding, data.reading, data.augment)
    alone = loader.measure(setting, flags.steps * flags.repeats)
    return {"loader": alone, "step": steps.compare(config, flags.steps, flags.repeats)}


def _processor() -> str:
    """The model's name; platform.processor() is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (FileNotFoundError, StopIteration):
        return platform.processor()


def _lines(values: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}{name}: {', '.join(f'{number:.4g}' for number in value)}")
        else:
            lines.append(f"{indent}{name}: {value:.5g}" if isinstance(value, float) else f"{indent}{name}: {value}")
    return lines


if __name__ == "__main__":
    main()

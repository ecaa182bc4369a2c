"""A million pictures through the whole data path: made, indexed, filtered, converted, looked at, read, and resumed.

    python benchmarks/million.py --folder=runs/million            # 6 GB; what is done already is not done again
    python benchmarks/million.py --folder=runs/small --rows=20000

Writes benchmarks/results/million.json (or --output=FILE): every command with its time and what it left on disk, and how
fast batches came from the tar shards and from the ArrayRecord shards. It fails if a resumed run does not read what the
uninterrupted one read.
"""

import argparse
import filecmp
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from dualtoken_jax.data.manifest import read_manifest
from dualtoken_jax.data.order import Order
from dualtoken_jax.data.pipeline import Batches, batches
from dualtoken_jax.data.reading import Reading
from dualtoken_jax.data.shards import Shards

RESOLUTION, BATCH = 24, 256
SEED = 0
RULES = ["--min_words=2", "--min_side=16", "--max_aspect=2", "--min_similarity=0.29", "--max_watermark=0.8"]


def main() -> None:
    """Flags → measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_060_000, help="of metadata; one in twenty has no picture")
    parser.add_argument("--batches", type=int, default=1000, help="read across the end of the first epoch")
    parser.add_argument("--resumes", type=int, default=100, help="positions at which reading begins again")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "million.json")
    flags = parser.parse_args()
    tars, filtered, records = (str(flags.folder / name) for name in ("laion", "filtered", "records"))
    results = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "rows": flags.rows, "commands": []}
    for name, made, arguments in (
        (
            "make",
            tars,
            [str(Path(__file__).with_name("synthetic_laion.py")), f"--folder={tars}", f"--rows={flags.rows}"],
        ),
        ("index", tars, ["-m", "dualtoken_jax.data.prepare", "index", tars]),
        ("filter", filtered, ["-m", "dualtoken_jax.data.prepare", "filter", tars, f"--output={filtered}", *RULES]),
        ("convert", records, ["-m", "dualtoken_jax.data.prepare", "convert", filtered, f"--output={records}"]),
        (
            "stats",
            "",
            ["-m", "dualtoken_jax.data.prepare", "stats", records, f"--contact_sheet={flags.folder}/sheet.png"],
        ),
    ):
        results["commands"].append(step(name, arguments, Path(made) if made else None, flags.folder))
    results["convert, killed half-way and started again"] = kill_and_resume(filtered, records, flags.folder / "again")
    for name, folder in (("tar, filtered", filtered), ("array_record", records)):
        results[name] = read(folder, flags.batches, flags.resumes)
        print(name, results[name], flush=True)
    results["filter"] = read_manifest(filtered).filtered
    flags.output.parent.mkdir(exist_ok=True)
    flags.output.write_text(json.dumps(results, indent=1) + "\n")


def step(name: str, arguments: list[str], made: Path | None, folder: Path) -> dict:
    """Runs `python ARGUMENTS`, unless an earlier call did, and returns what it took."""
    done = folder / f"{name}.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(name, "…", flush=True)
        before, cpu, started = size_of(made), cpu_of_children(), time.perf_counter()
        root = str(Path(__file__).parents[1])
        printed = subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": root},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        seconds = time.perf_counter() - started
        command = " ".join(["python", *(argument.replace(f"{folder}/", "FOLDER/") for argument in arguments)])
        written = size_of(made) - before
        result = {"command": command.replace(f"{root}/", ""), "seconds": round(seconds, 1)}
        result |= {"CPU seconds": round(cpu_of_children() - cpu, 1), "bytes": written, "load": load()}
        done.write_text(json.dumps(result | {"printed": printed.replace(f"{folder}/", "FOLDER/").splitlines()}))
    return json.loads(done.read_text())


def kill_and_resume(dataset: str, expected: str, output: Path) -> str:
    """Converts `dataset` to `output`, kills it half-way, starts it again, and compares; `output` is removed then."""
    shards = len(read_manifest(expected).shards)
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "dualtoken_jax.data.prepare", "convert", dataset, f"--output={output}"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=environment) as process:
        while (done := len(list(output.glob("*.array_record")))) < shards // 2 and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    if (output / "manifest.json").exists():
        raise AssertionError(f"{output} was finished before it was killed")
    subprocess.run(command, env=environment, check=True)
    names = sorted(path.name for path in Path(expected).iterdir())
    same, *_ = filecmp.cmpfiles(expected, output, names, shallow=False)
    if sorted(same) != names or sorted(path.name for path in output.iterdir()) != names:
        raise AssertionError(f"{output} differs from {expected} in {set(names) - set(same)}")
    shutil.rmtree(output)
    return f"killed (SIGKILL) with {done} of {shards} shards done; all {len(names)} files equal"


def cpu_of_children() -> float:
    """Seconds of processor time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def load() -> float:
    """Processes that wanted a core during the last minute, others' included: times mean little beside a high one."""
    return round(os.getloadavg()[0], 1)


def size_of(folder: Path | None) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder else 0


def read(folder: str, count: int, resumes: int) -> dict:
    """Opens the dataset, reads `count` batches across the end of the first epoch, and begins again here and there."""
    started = time.perf_counter()
    source = Shards(folder, "train")
    opened = time.perf_counter() - started
    order = Order((len(source),), (1,), SEED)
    first = max(0, len(source) - count * BATCH // 2)  # half of them in the first epoch, half in the second
    started, cpu = time.perf_counter(), time.process_time()
    stream = stream_from(source, order, first)
    rows = np.concatenate([digests(next(stream)) for _ in range(count)])
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    bad, requests = stream.bad.total, source.traffic.requests
    stream.close()
    for offset in np.random.default_rng(1).integers(0, (count - 1) * BATCH, resumes):
        resumed = stream_from(Shards(folder, "train"), order, first + int(offset))
        if not (digests(next(resumed)) == rows[offset : offset + BATCH]).all():
            raise AssertionError(f"{folder}: resumed at position {first + offset}, other examples came")
        resumed.close()
    return {
        "examples": len(source),
        "opened in s": round(opened, 4),
        "batches": count,
        "batch size": BATCH,
        "pictures/s": round(count * BATCH / seconds),
        "pictures per CPU second": round(count * BATCH / cpu),
        "load": load(),
        "requests per picture": round(requests / (count * BATCH), 3),
        "bad pictures": bad,
        "resumed at random positions, all equal": resumes,
    }


def stream_from(source: Shards, order: Order, position: int) -> Batches:
    """Training batches with random crops."""
    return batches(
        source,
        caption_digests,
        order=order,
        resolution=RESOLUTION,
        decoding="exact",
        batch_size=BATCH,
        start=position,
        augment=True,
        reading=Reading(),
        rows=np.arange(BATCH),
    )


def caption_digests(captions: list[str]) -> np.ndarray:
    """int32 [n, 1]: in the place of tokens, to see whether captions are the same."""
    return np.array([[zlib.crc32(caption.encode()) & 0x7FFFFFFF] for caption in captions], np.int32)


def digests(batch: dict[str, np.ndarray]) -> np.ndarray:
    """uint32 [B]: one number per row, of its picture, caption, label and weight."""
    rows = zip(batch["image"], batch["text"], batch["label"], batch["weight"], strict=True)
    return np.array(
        [zlib.crc32(b"".join(np.ascontiguousarray(part).tobytes() for part in row)) for row in rows], np.uint32
    )


if __name__ == "__main__":
    main()

"""A LAION of tiny pictures, in the very layout in which img2dataset leaves a download (output_format=webdataset).

    python benchmarks/synthetic_laion.py --folder=runs/laion --rows=20000

Per shard of 10,000 rows: `00000.tar` with KEY.jpg, KEY.json and KEY.txt of every row that could be downloaded, in the
order in which downloads happened to end; `00000.parquet` with all rows; `00000_stats.json`. Every file but the
seconds in the last is a pure function of (seed, shard).
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dualtoken_jax.data.scenes import Scenes, ScenesConfig

ROWS = 10_000  # per shard, img2dataset's default
FAILED = 0.05  # share of the rows that could not be downloaded or resized
SIDE = 24  # pixels, at most
_NSFW = ("UNLIKELY", "UNSURE", "NSFW", None)
_THREADS = 64  # that downloaded side by side: how far a row may be out of order
# Types of LAION's columns and of those that img2dataset adds, in its order.
SCHEMA = pa.schema(
    [
        ("NSFW", pa.string()),
        ("similarity", pa.float64()),
        ("punsafe", pa.float64()),
        ("pwatermark", pa.float64()),
        ("aesthetic", pa.float64()),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)


def write(folder: Path, rows: int, seed: int = 0, corrupt: float = 0.0, workers: int | None = None) -> int:
    """Writes all shards and returns the number of pictures in them; `corrupt` is the share of broken files."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, shard, min(ROWS, rows - shard * ROWS), seed, corrupt) for shard in range(-(-rows // ROWS))]
    with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count()) as pool:
        return sum(pool.starmap(write_shard, jobs, chunksize=1))


def write_shard(folder: Path, shard: int, rows: int, seed: int = 0, corrupt: float = 0.0) -> int:
    """Writes the three files of one shard and returns the number of its pictures."""
    started = time.time()
    metas, images = rows_of(shard, rows, seed, corrupt)
    name = f"{shard:05d}"
    with tarfile.open(folder / f"{name}.tar", "w|", format=tarfile.USTAR_FORMAT) as tar:
        for meta, image in zip(metas, images, strict=True):
            if image is not None:
                _add(tar, f"{meta['key']}.jpg", image)
                _add(tar, f"{meta['key']}.json", json.dumps(meta, indent=4).encode())
                _add(tar, f"{meta['key']}.txt", meta["caption"].encode())
    pq.write_table(pa.Table.from_pylist(metas, SCHEMA), folder / f"{name}.parquet", row_group_size=100)
    _write_stats(folder / f"{name}_stats.json", metas, started)
    return sum(image is not None for image in images)


def rows_of(shard: int, rows: int, seed: int, corrupt: float) -> tuple[list[dict], list[bytes | None]]:
    """Metadata as img2dataset's parquet has it, and the JPEG of each row (None: it could not be downloaded)."""
    rng = np.random.default_rng([seed, shard])
    scenes = Scenes(ScenesConfig(resolution=SIDE, size=2**40), seed, "train").read(np.arange(rows) + shard * ROWS)
    scores = _scores(rng, rows)
    sizes = _sizes(rng, rows)
    fates = rng.random(rows)
    broken = rng.random(rows) < corrupt
    metas, images = [], []
    for i in np.argsort(np.arange(rows) + rng.random(rows) * _THREADS, kind="stable"):
        width, height = (int(side) for side in sizes[i])
        image = _jpeg(scenes[i].image, (width, height), bool(broken[i]))
        meta = {name: column[i] for name, column in scores.items()}
        meta |= {"caption": _caption(scenes[i].caption, fates[i]), "url": f"https://example.com/{shard}/{i}.jpg"}
        meta |= {"key": f"{shard * ROWS + int(i):09d}"} | _outcome(fates[i], width, height, image)
        metas.append(meta)
        images.append(image if meta["status"] == "success" else None)
    return metas, images


def _scores(rng: np.random.Generator, rows: int) -> dict[str, list]:
    unsafe = np.clip(rng.beta(0.4, 6, rows), 0, 1)
    tags = np.digitize(unsafe * rng.uniform(0.2, 1.5, rows), [0.2, 0.5])  # another model's opinion
    tags[rng.random(rows) < 0.01] = 3  # not every row of LAION was scored
    return {
        "NSFW": [_NSFW[tag] for tag in tags],
        "similarity": (0.28 + 0.15 * rng.beta(1, 3, rows)).tolist(),
        "punsafe": unsafe.tolist(),
        "pwatermark": rng.beta(0.6, 2, rows).tolist(),
        "aesthetic": np.clip(rng.normal(5, 1, rows), 1, 10).tolist(),
    }


def _sizes(rng: np.random.Generator, rows: int) -> np.ndarray:
    """(width, height) in pixels, int64 [rows, 2]: most a little off square, one in a hundred a thin strip."""
    sizes = rng.integers(SIDE * 2 // 3, SIDE + 1, (rows, 2))
    strips = rng.random(rows) < 0.01
    sizes[strips, rng.integers(0, 2, rows)[strips]] = 4
    return sizes


def _caption(caption: str, fate: float) -> str:
    """A few captions as the web has them: nothing, a file name, or letters beyond ASCII."""
    oddity = int(fate * 1e6) % 200
    return {0: "", 1: "IMG_0042.JPG", 2: f"“{caption}” – ein Bild, 一幅画"}.get(oddity, caption)


def _jpeg(pixels: np.ndarray, size: tuple[int, int], broken: bool) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()[:400] if broken else file.getvalue()


def _outcome(fate: float, width: int, height: int, image: bytes) -> dict:
    """The columns that img2dataset adds. It enlarges nothing, and here it shrank everything by 20."""
    nothing = {"width": None, "height": None, "original_width": None, "original_height": None, "exif": None}
    if fate < FAILED / 2:
        error = "HTTP Error 404: Not Found" if fate < FAILED / 4 else "<urlopen error timed out>"
        return {"status": "failed_to_download", "error_message": error} | nothing | {"sha256": None}
    if fate < FAILED:
        return {"status": "failed_to_resize", "error_message": "Image decoding error"} | nothing | {"sha256": None}
    sizes = {"width": width, "height": height, "original_width": 20 * width, "original_height": 20 * height}
    digest = hashlib.sha256(image).hexdigest()
    return {"status": "success", "error_message": None} | sizes | {"exif": "{}", "sha256": digest}


def _add(tar: tarfile.TarFile, name: str, contents: bytes) -> None:
    """A member as webdataset's TarWriter makes it, but for the time."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(contents), 1_700_000_000, 0o444
    member.uname = member.gname = "bigdata"
    tar.addfile(member, io.BytesIO(contents))


def _write_stats(path: Path, metas: list[dict], started: float) -> None:
    fates = Counter(meta["status"] for meta in metas)
    stats = {
        "count": len(metas),
        "successes": fates["success"],
        "failed_to_download": fates["failed_to_download"],
        "failed_to_resize": fates["failed_to_resize"],
        "duration": time.time() - started,
        "start_time": started,
        "end_time": time.time(),
        "status_dict": dict(Counter(meta["error_message"] or meta["status"] for meta in metas)),
    }
    path.write_text(json.dumps(stats, indent=4))


def main() -> None:
    """Writes the dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20_000, help="one in twenty has no picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corrupt", type=float, default=0.0, help="share of pictures that are cut off")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    flags = parser.parse_args()
    started = time.perf_counter()
    count = write(flags.folder, flags.rows, flags.seed, flags.corrupt, flags.workers)
    print(f"{count} pictures in {flags.folder}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

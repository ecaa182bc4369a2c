"""python -m dualtoken_jax.data.prepare verify DATASET [--pictures]

Reads every byte of a prepared dataset and compares sizes and checksums of shards and indices with the manifest; with
--pictures it decodes every picture as training does, too. Lists what differs, and then ends with status 1.
"""

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Iterator

import numpy as np

from dualtoken_jax.data import images
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.manifest import read_manifest
from dualtoken_jax.data.prepare import workers
from dualtoken_jax.data.prepare.inputs import read_each
from dualtoken_jax.data.prepared import PreparedFiles, ShardChanged
from dualtoken_jax.data.shards import Shards
from dualtoken_jax.data.storage import Storage, Stream, is_remote
from dualtoken_jax.flags import positive

_TOGETHER = 64  # pictures in memory at once
_SAID = 20  # differences of one shard that are listed


def main(arguments: list[str] | None = None) -> None:
    """Flags → list of differences; ends with status 1 where there are any."""
    flags = _parser().parse_args(arguments)
    dataset = flags.dataset if is_remote(flags.dataset) else os.path.expanduser(flags.dataset)
    _opened.cache_clear()  # what this process remembers may have changed
    try:
        manifest = read_manifest(dataset)
        found = workers.run(ShardVerifier(dataset, flags.pictures), range(len(manifest.shards)), flags.workers)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    for _, differences in sorted(found):
        for difference in differences[:_SAID]:
            print(difference)
        if len(differences) > _SAID:
            print(f"… {len(differences) - _SAID} more in this shard")
    what = "sizes, checksums and pictures" if flags.pictures else "sizes and checksums"
    wrong = sum(bool(differences) for _, differences in found)
    print(f"{what} of {len(found):,} shards, {int(manifest.starts[-1]):,} examples: {wrong:,} shards differ")
    sys.exit(1 if wrong else 0)


@dataclasses.dataclass(frozen=True)
class ShardVerifier:
    """Verifies one shard of a dataset; picklable."""

    dataset: str
    pictures: bool

    def __call__(self, number: int) -> tuple[int, list[str]]:
        """The shard's number, and a line for every difference."""
        return number, list(self._differences(number))

    def _differences(self, number: int) -> Iterator[str]:
        files, source = _opened(self.dataset)
        shard = files.shard(number)
        try:
            path = files.path(number)
            checksum = Stream(files.storage, path).checksum()
            if shard.index:
                files.index(number)
        except (OSError, ShardChanged) as error:
            yield str(error)
            return
        if checksum != shard.checksum:
            yield f"{path} has the checksum {checksum}, the manifest says {shard.checksum}"
        if self.pictures:
            first, end = files.manifest.starts[number : number + 2].tolist()
            for start in range(first, end, _TOGETHER):
                yield from _bad_pictures(source, np.arange(start, min(start + _TOGETHER, end)))


@functools.lru_cache(maxsize=1)  # for the next shard of this process: a large manifest takes a while to read
def _opened(dataset: str) -> tuple[PreparedFiles, Shards]:
    return PreparedFiles(dataset, read_manifest(dataset), Storage()), Shards(dataset, "all")


def _bad_pictures(source: Shards, indices: np.ndarray) -> Iterator[str]:
    for example in read_each(source, indices):
        try:
            if isinstance(example, BadImage):
                raise example
            images.decode(example.image)
        except BadImage as error:
            yield f"{example.origin}: {error}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dualtoken_jax.data.prepare verify",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL with a manifest.json")
    parser.add_argument("--pictures", action="store_true", help="decode every picture")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes; default: one per core")
    return parser

"""A prepared dataset as a source: tar, ArrayRecord or Parquet shards behind one manifest."""

import collections
import hashlib
import logging
import os

import numpy as np

from dualtoken_jax.data.cache import Cache
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.manifest import Manifest, read_manifest
from dualtoken_jax.data.numbering import Split, by_shard, held_out_every, split_indices, split_size
from dualtoken_jax.data.parquet_shards import ParquetShards
from dualtoken_jax.data.prepared import PreparedFiles
from dualtoken_jax.data.record_shards import RecordShards
from dualtoken_jax.data.sources import Example
from dualtoken_jax.data.storage import Storage, Traffic
from dualtoken_jax.data.tar_shards import TarShards

_KINDS = {"tar": TarShards, "array_record": RecordShards, "parquet": ParquetShards}
_log = logging.getLogger(__name__)
_LOOKED_AT = 8  # examples, to find out whether there are captions


class Shards:
    """Random access to a prepared dataset; opening it reads the manifest and no shard.

    Attributes:
      class_names: as the manifest has them.
      traffic: requests and bytes since this process has the source.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: Split,
        eval_fraction: float = 0.1,
        *,
        block: int = 1,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        """
        Args:
          path: folder or URL with the manifest.
          split: "all", or one part: every round(1 / eval_fraction)-th example is "eval", the others are "train".
          block: examples in a row that are read together when one of them is asked for, and kept: for an order that
            stays inside windows of such blocks, so that an object store sees few and large reads. 1 reads each alone.
          cache_bytes: of blocks kept in memory; those of a window should fit.

        Raises:
          FileNotFoundError: there is no manifest.
          ValueError: the manifest is damaged, an argument is impossible, or the split has no examples.
        """
        if split not in ("train", "eval", "all"):
            raise ValueError(f"split must be 'train', 'eval' or 'all', got {split!r}")
        if block < 1 or cache_bytes < 0:
            raise ValueError(f"block must be at least 1 and cache_bytes at least 0, got {block} and {cache_bytes}")
        self._split, self._every = split, held_out_every(eval_fraction)
        path = os.path.expanduser(os.fspath(path))
        manifest = read_manifest(path)
        self._starts = manifest.starts
        self._size = split_size(int(self._starts[-1]), split, self._every)
        if not self._size:
            raise ValueError(
                f"{path} has {self._starts[-1]} examples, and none is in the split {split!r} when every "
                f"{self._every}th is held out"
            )
        self._files = PreparedFiles(path, manifest, Storage())
        self._shards = _KINDS[manifest.kind](self._files)
        self._block, self._cache_bytes = block, cache_bytes
        self._blocks = Cache(cache_bytes, _bytes_of)
        self._read_last: collections.deque[int] = collections.deque(maxlen=64)
        self._warned = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels; empty without."""
        return self._manifest.class_names

    @property
    def traffic(self) -> Traffic:
        """Requests and bytes since this process has the source."""
        return self._files.storage.traffic

    @property
    def _manifest(self) -> Manifest:
        return self._files.manifest

    @property
    def fingerprint(self) -> str:
        """Digest of what determines example i of this split."""
        which = self._split if self._split == "all" else f"{self._split}/{self._every}"
        return hashlib.blake2b(f"{self._manifest.fingerprint} {which}".encode(), digest_size=16).hexdigest()

    @property
    def has_captions(self) -> bool:
        """Whether one of the first few examples has a caption; reads them. Large sets lack some captions everywhere."""
        first = self._read_all(np.arange(min(_LOOKED_AT, len(self))))
        return any(isinstance(example, Example) and example.caption for example in first)

    def __len__(self) -> int:
        return self._size

    def read(self, indices: np.ndarray) -> list[Example]:
        """Examples with the encoded bytes of their pictures.

        Raises:
          BadImage: one of the examples is damaged or was changed; ask for them one by one to get the others.
          OSError: storage fails.
          ShardChanged: a shard or index is another file than the one that the manifest describes.
        """
        found = self._read_all(np.asarray(indices, np.int64)) if self._block == 1 else self._read_blocks(indices)
        for example in found:
            if isinstance(example, BadImage):
                # A new one: the block keeps the old, whose traceback would hold on to the frames of every reader.
                raise BadImage(*example.args)
        return found

    def _read_all(self, indices: np.ndarray) -> list[Example | BadImage]:
        """Examples at `indices` [n] of the split, straight from storage, shard by shard."""
        examples = split_indices(indices, self._split, self._every)
        found: list[Example | BadImage] = [BadImage("unreadable")] * len(examples)
        for shard, places, rows in by_shard(examples, self._starts):
            for place, example in zip(places.tolist(), self._shards.read(shard, rows), strict=True):
                found[place] = example
        return found

    def _read_blocks(self, indices: np.ndarray) -> list[Example | BadImage]:
        found = []
        for index in np.asarray(indices).tolist():
            number, place = divmod(index, self._block)
            found.append(self._blocks.get(number, lambda number=number: self._read_block(number))[place])
        return found

    def _read_block(self, number: int) -> list[Example | BadImage]:
        if number in self._read_last and not self._warned:
            self._warned = True
            _log.warning(
                "blocks of %d examples are read again soon after they were forgotten: the blocks of a shuffle window "
                "do not fit into %d MiB together; make the window or the blocks smaller",
                self._block,
                self._cache_bytes // 2**20,
            )
        self._read_last.append(number)
        first = number * self._block
        return self._read_all(np.arange(first, min(first + self._block, len(self))))

    def close(self) -> None:
        """Closes files and forgets what was read; reading goes on opening them again."""
        self._blocks.clear()
        self._shards.close()
        self._files.close()


def _bytes_of(block: list[Example | BadImage]) -> int:
    """About what a block takes in memory."""
    return sum(len(example.image) + 1000 if isinstance(example, Example) else 1000 for example in block)

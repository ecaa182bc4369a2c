"""The files of a prepared dataset, each checked against the manifest when it is first needed."""

import numpy as np

from dualtoken_jax.data.cache import Cache
from dualtoken_jax.data.manifest import Manifest, Shard, checksum_of, join
from dualtoken_jax.data.npy import read_npy
from dualtoken_jax.data.storage import Storage
from dualtoken_jax.data.tar_index import read_index

INDEX_BYTES = 64 * 2**20  # of indices kept in memory: those of 140 tar shards of 10,000 examples
REMEDY = "prepare it again with `python -m dualtoken_jax.data.prepare index` (or `convert`, `filter`)"


class ShardChanged(ValueError):
    """A shard or an index is not what the manifest says; no picture of it can be trusted."""


class PreparedFiles:
    """Thread-safe; pickles without what it has read."""

    def __init__(self, folder: str, manifest: Manifest, storage: Storage) -> None:
        """Opens nothing."""
        self.manifest, self.storage = manifest, storage
        self._folder = folder
        self._indices = Cache(INDEX_BYTES, _bytes_of)
        self._checked = np.zeros(len(manifest.shards), bool)

    def shard(self, number: int) -> Shard:
        """The manifest's entry."""
        return self.manifest.shards[number]

    def path(self, number: int) -> str:
        """Path or URL of a shard. Raises ShardChanged where its size is another one, OSError where it is not there."""
        shard = self.shard(number)
        path = join(self.manifest.root or self._folder, shard.name)
        if not self._checked[number]:
            size = self.storage.size(path)
            if size != shard.bytes:
                raise ShardChanged(f"{path} has {size} bytes, the manifest says {shard.bytes}: {REMEDY}")
            self._checked[number] = True
        return path

    def index(self, number: int) -> np.ndarray:
        """Rows of a tar shard's index, or uint32 [examples], the rows that a filter left of another shard.

        Raises ShardChanged where it is not the index of which the manifest has the checksum, OSError where it is gone.
        """
        return self._indices.get(number, lambda: self._read_index(number))

    def _read_index(self, number: int) -> np.ndarray:
        shard = self.shard(number)
        path = join(self._folder, shard.index)
        data = self.storage.read(path)
        if (found := checksum_of(data)) != shard.index_checksum:
            raise ShardChanged(f"{path} has the checksum {found}, the manifest says {shard.index_checksum}: {REMEDY}")
        index = read_index(data) if self.manifest.kind == "tar" else read_npy(data, np.dtype("<u4"))
        if len(index) != shard.examples:
            raise ShardChanged(f"{path} has {len(index)} rows, the manifest says {shard.examples}: {REMEDY}")
        return index

    def rows(self, number: int, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: the shard's own numbers of the dataset's rows [n]; the same where nothing was filtered."""
        return self.index(number)[rows].astype(np.int64) if self.shard(number).index else np.asarray(rows, np.int64)

    def close(self) -> None:
        """Closes files and forgets indices; both come back when needed."""
        self._indices.clear()
        self.storage.close()


def _bytes_of(array: np.ndarray) -> int:
    return array.nbytes

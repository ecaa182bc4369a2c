"""Examples of our own ArrayRecord shards."""

import numpy as np

from dualtoken_jax.data.array_records import ArrayRecords
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.prepared import PreparedFiles
from dualtoken_jax.data.records import unpack
from dualtoken_jax.data.sources import Example


class RecordShards:
    """Reads the ArrayRecord shards of a prepared dataset; thread-safe."""

    def __init__(self, files: PreparedFiles) -> None:
        """Opens nothing."""
        self._files = files
        self._records = ArrayRecords(files.storage.traffic)

    def read(self, number: int, rows: np.ndarray) -> list[Example | BadImage]:
        """As TarShards.read; BadImage for a record that is damaged."""
        path, shard = self._files.path(number), self._files.shard(number)
        positions = self._files.rows(number, rows).tolist()
        found = self._records.read(path, positions, None if shard.index else shard.examples)
        return [_example(data, f"{path}/{position}") for data, position in zip(found, positions, strict=True)]

    def close(self) -> None:
        """Closes the readers; reading goes on opening them again."""
        self._records.close()


def _example(data: bytes | BadImage, origin: str) -> Example | BadImage:
    if isinstance(data, BadImage):
        return data
    try:
        record = unpack(data)
    except BadImage as error:
        return BadImage(error.reason, error.detail, origin)
    return Example(record.image, record.caption, record.label, f"{origin} ({record.key})" if record.key else origin)

"""Examples of tar shards by ranged reads: one request for an example, or for several that lie close together."""

import zlib
from collections.abc import Iterator

import numpy as np

from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.prepared import PreparedFiles
from dualtoken_jax.data.sources import Example

GAP = 256 * 1024  # bytes between two spans that are read along: cheaper than a second request to an object store
MAX_REQUEST = 80 * 2**20  # bytes; no smaller than the largest span of one example


class TarShards:
    """Reads the tar shards of a prepared dataset; thread-safe."""

    def __init__(self, files: PreparedFiles) -> None:
        """Opens nothing."""
        self._files = files

    def read(self, number: int, rows: np.ndarray) -> list[Example | BadImage]:
        """Examples at `rows` [n] of shard `number`, in that order; BadImage for a picture that was changed.

        Raises OSError where storage fails, ShardChanged.
        """
        path, found = self._files.path(number), self._files.index(number)[rows]
        examples: list[Example | BadImage] = [BadImage("unreadable")] * len(found)
        for start, length, members in _requests(found["start"].astype(np.int64), found["bytes"].astype(np.int64)):
            data = self._files.storage.read_exactly(path, start, length)
            for member in members:
                begin = int(found["start"][member]) - start
                examples[member] = _example(data[begin : begin + int(found["bytes"][member])], found[member], path)
        return examples

    def close(self) -> None:
        """Holds nothing of its own."""


def _requests(starts: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, int, list[int]]]:
    """(start, bytes, spans in it) of the requests that cover the spans `starts`, `lengths` [n]."""
    begin, end, members = 0, 0, []
    for member in np.argsort(starts, kind="stable").tolist():
        start, stop = int(starts[member]), int(starts[member] + lengths[member])
        if members and (start > end + GAP or max(stop, end) - begin > MAX_REQUEST):
            yield begin, end - begin, members
            members = []
        if not members:
            begin, end = start, stop
        end = max(end, stop)
        members.append(member)
    if members:
        yield begin, end - begin, members


def _example(span: bytes, row: np.void, path: str) -> Example | BadImage:
    image = span[row["image"] : int(row["image"]) + int(row["image_bytes"])]
    origin = f"{path}/{row['key'].decode('utf-8', 'replace')}"
    crc32 = zlib.crc32(image)
    if crc32 != row["crc32"]:
        detail = f"the picture's CRC-32 is {crc32:08x}, and was {row['crc32']:08x} when the shard was indexed"
        return BadImage("changed", detail, origin)
    caption = span[row["caption"] : int(row["caption"]) + int(row["caption_bytes"])]
    label = int(row["label"])
    # Captions come from anywhere: a byte that is not UTF-8 must not end a training run.
    text = caption.decode("utf-8-sig", "replace").strip() if caption else None
    return Example(image, text, label if label >= 0 else None, origin)

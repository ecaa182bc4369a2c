"""What `prepare index` does to one shard: a pass over its bytes, an index where it needs one, a note of both."""

import dataclasses
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken_jax.data.array_records import open_reader
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.manifest import Kind, Shard, checksum_of, join
from dualtoken_jax.data.parquet_shards import read_layout
from dualtoken_jax.data.prepare.ledger import Ledger
from dualtoken_jax.data.records import unpack
from dualtoken_jax.data.storage import RangeFile, Storage, Stream, write_whole
from dualtoken_jax.data.tar_index import index_bytes, index_tar

_TOGETHER = 256  # records in memory at once


@dataclasses.dataclass(frozen=True)
class ShardIndexer:
    """Indexes shards of `kind` below `root` into `output`; picklable, and harmless to call twice."""

    kind: Kind
    root: str
    output: str

    def __call__(self, item: tuple[int, str]) -> None:
        """Shard (number, name), into the ledger of `output`. Raises OSError where storage fails.

        The notes say: `left_out` (counts by reason), `damage` ("" for a whole shard), `labels` (one more than the
        largest) and `class_names`, where the shard itself has them.
        """
        number, name = item
        shard, notes = getattr(self, f"_{self.kind}")(name)
        Ledger(self.output).add(number, shard, notes)

    def _tar(self, name: str) -> tuple[Shard, dict]:
        found = index_tar(Storage(), join(self.root, name))
        shard = Shard(name, len(found.rows), found.bytes, found.checksum)
        if shard.examples:
            data, index = index_bytes(found.rows), f"index/{name}.npy"
            write_whole(join(self.output, index), data)
            shard = shard._replace(index=index, index_checksum=checksum_of(data))
        labels = int(found.rows["label"].max(initial=-1)) + 1
        return shard, _notes(found.left_out, found.damage, labels)

    def _array_record(self, name: str) -> tuple[Shard, dict]:
        path = join(self.root, name)
        stream = Stream(Storage(), path)
        checksum = stream.checksum()
        try:
            examples, labels, bad = _look_through(path)
        except (OSError, RuntimeError) as error:  # not the storage's, which has just given all of it
            return Shard(name, 0, stream.size, checksum), _notes({}, f"no whole ArrayRecord file: {error}", 0)
        if bad == examples:
            return Shard(name, 0, stream.size, checksum), _notes({}, "none of its records is one of ours", 0)
        # They keep their places, as a filter would have to be written down: training replaces them one by one.
        return Shard(name, examples, stream.size, checksum), _notes(
            {"damaged-record, kept": bad} if bad else {}, "", labels
        )

    def _parquet(self, name: str) -> tuple[Shard, dict]:
        path, storage = join(self.root, name), Storage()
        stream = Stream(storage, path)
        checksum = stream.checksum()
        try:
            layout = read_layout(storage, path, stream.size)
            labels = _labels_of(RangeFile(storage, path, stream.size), layout.label)
        except ValueError as error:
            return Shard(name, 0, stream.size, checksum), _notes({}, str(error), 0)
        shard = Shard(name, int(layout.starts[-1]), stream.size, checksum)
        return shard, _notes({}, "", labels) | {"class_names": layout.class_names}


def _notes(left_out: dict[str, int], damage: str, labels: int) -> dict[str, Any]:
    return {"left_out": dict(left_out), "damage": damage, "labels": labels, "class_names": ()}


def _look_through(path: str) -> tuple[int, int, int]:
    """(records, one more than the largest label, records that are not ours or damaged)."""
    reader = open_reader(path)
    count, labels, bad = reader.num_records(), 0, 0
    for start in range(0, count, _TOGETHER):
        for position in range(start, min(start + _TOGETHER, count)):
            try:
                label = unpack(reader.read([position])[0]).label
                labels = max(labels, -1 if label is None else label + 1)
            except (BadImage, RuntimeError):
                bad += 1
    return count, labels, bad


def _labels_of(file: io.RawIOBase, column: str | None) -> int:
    if column is None:
        return 0
    try:
        found = pq.read_table(file, columns=[column])[column].drop_null().to_numpy()
    except pa.ArrowException as error:
        raise ValueError(f"its column {column!r} cannot be read: {error}") from error
    return int(np.max(found, initial=-1)) + 1

"""Our own ArrayRecord shards: one msgpack record per example, with the encoded picture."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgpack
from array_record.python.array_record_module import ArrayRecordWriter

from dualtoken_jax.data.images import MAX_BYTES, BadImage
from dualtoken_jax.data.manifest import Shard
from dualtoken_jax.data.storage import Storage, Stream
from dualtoken_jax.data.tar_index import MAX_CAPTION, MAX_KEY

# One record a chunk, so that one example is one read; pictures are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"


class Record(NamedTuple):
    """One example as it lies in a shard."""

    image: bytes  # an encoded JPEG, PNG or WebP file
    caption: str | None = None
    label: int | None = None  # index into the manifest's class_names
    key: str = ""  # its name where it came from, for messages


def pack(record: Record) -> bytes:
    """The record's bytes. Raises ValueError for what `unpack` would refuse."""
    _check(record)
    return msgpack.packb(list(record))


def unpack(data: bytes) -> Record:
    """The record. Raises BadImage (reason "damaged-record") for bytes that are none."""
    try:
        found = msgpack.unpackb(data, max_array_len=len(Record._fields), max_map_len=0, max_ext_len=0)
        if not isinstance(found, list) or len(found) != len(Record._fields):
            raise ValueError(f"{len(Record._fields)} fields are needed")
        record = Record(*found)
        _check(record)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadImage("damaged-record", f"{len(data)} bytes that are no record: {error}") from error
    return record


def _check(record: Record) -> None:
    image, caption, label, key = record
    if not isinstance(image, bytes) or len(image) > MAX_BYTES:
        raise ValueError(f"image must be at most {MAX_BYTES} bytes, got {_said(image)}")
    if caption is not None and not (isinstance(caption, str) and len(caption) <= MAX_CAPTION):
        raise ValueError(f"caption must be None or a text of at most {MAX_CAPTION} characters, got {_said(caption)}")
    if label is not None and not (type(label) is int and 0 <= label < 2**31):
        raise ValueError(f"label must be None or a number from 0 to {2**31 - 1}, got {_said(label)}")
    if not isinstance(key, str) or len(key) > MAX_KEY:
        raise ValueError(f"key must be a text of at most {MAX_KEY} characters, got {_said(key)}")


def _said(value: object) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, bytes | str) else repr(value)[:40]


def write_shard(path: str | os.PathLike, records: Iterable[Record]) -> Shard:
    """Writes a local shard, whole or not at all, and returns its entry for a manifest that lies beside it.

    Raises ValueError for a record that `pack` refuses, OSError where the disk does.
    """
    path = Path(path)
    partial, count = path.with_name(path.name + ".partial"), 0
    writer = ArrayRecordWriter(os.fspath(partial), WRITER_OPTIONS)
    try:
        for record in records:
            writer.write(pack(record))
            count += 1
        writer.close()
    except RuntimeError as error:
        raise OSError(f"cannot write {partial}: {error}") from error
    stream = Stream(Storage(), os.fspath(partial))
    shard = Shard(path.name, count, stream.size, stream.checksum())
    partial.replace(path)
    return shard

"""Prepared datasets of three kinds of shards, in folders or at URLs, for the tests of what reads them."""

import io

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shard_files
from shard_files import caption, picture

from dualtoken_jax.data.manifest import Manifest, Shard, checksum_of, join, write_manifest
from dualtoken_jax.data.records import Record, write_shard
from dualtoken_jax.data.storage import Storage
from dualtoken_jax.data.tar_index import index_bytes, index_tar

PER_SHARD = 10


def put(path, data):
    """Writes a file or URL."""
    with fsspec.open(path, "wb") as file:
        file.write(data)


def tar_dataset(folder, count, labels=0, keep=None):
    """`count` tar shards of PER_SHARD examples in a folder or URL, with manifest; `keep` are the rows left of each."""
    fsspec.core.url_to_fs(folder)[0].makedirs(join(folder, "index"), exist_ok=True)
    entries = []
    for number in range(count):
        name = f"{number:05d}.tar"
        put(join(folder, name), shard_files.shard(number * PER_SHARD, PER_SHARD, labels))
        found = index_tar(Storage(), join(folder, name))
        rows = found.rows if keep is None else found.rows[keep]
        index = index_bytes(rows)
        put(join(folder, f"index/{name}.npy"), index)
        entries.append(
            Shard(name, len(rows), found.bytes, found.checksum, f"index/{name}.npy", checksum_of(index)),
        )
    write_manifest(folder, Manifest("tar", tuple(entries), class_names=tuple(f"class {n}" for n in range(labels))))
    return folder


def record_dataset(folder, count, labels=3, keep=None):
    """The same of ArrayRecord shards."""
    entries = []
    for number in range(count):
        numbers = range(number * PER_SHARD, (number + 1) * PER_SHARD)
        records = (Record(picture(n), caption(n), n % labels, f"{n:09d}") for n in numbers)
        entries.append(filtered(folder, write_shard(folder / f"{number:05d}.array_record", records), keep))
    write_manifest(folder, Manifest("array_record", tuple(entries), class_names=tuple("abc")))
    return str(folder)


def filtered(folder, shard, keep):
    """The entry of a shard of which the rows `keep` are left."""
    if keep is None:
        return shard
    file = io.BytesIO()
    np.save(file, np.array(keep, np.uint32))
    put(join(str(folder), f"{shard.name}.npy"), file.getvalue())
    checksum = checksum_of(file.getvalue())
    return shard._replace(examples=len(keep), index=f"{shard.name}.npy", index_checksum=checksum)


def parquet_file(path, numbers, struct=True, text="caption", rows=4):
    """A Parquet shard of these examples, as the hub's datasets or as others write them."""
    images = [picture(n) for n in numbers]
    column = pa.array([{"bytes": b, "path": None} for b in images]) if struct else pa.array(images)
    columns = {"image" if struct else "jpg": column, text: [caption(n) for n in numbers]}
    table = pa.table(columns | {"label": pa.array([n % 3 for n in numbers], pa.int64()), "other": list(numbers)})
    with fsspec.open(path, "wb") as file:
        pq.write_table(table, file, row_group_size=rows)


def parquet_dataset(folder, count, keep=None, **layout):
    """As tar_dataset, of Parquet shards."""
    entries = []
    for number in range(count):
        path = join(folder, f"{number:05d}.parquet")
        parquet_file(path, range(number * PER_SHARD, (number + 1) * PER_SHARD), **layout)
        data = Storage().read(path)
        shard = Shard(f"{number:05d}.parquet", PER_SHARD, len(data), checksum_of(data))
        entries.append(filtered(folder, shard, keep))
    write_manifest(folder, Manifest("parquet", tuple(entries), class_names=tuple("abc")))
    return folder


def assert_examples(found, numbers, labels=0):
    """That these are the examples of these numbers."""
    assert len(found) == len(numbers)
    for example, number in zip(found, numbers, strict=True):
        assert (example.image, example.caption) == (picture(number), caption(number))
        assert example.label == (number % labels if labels else None)


KINDS = {
    "tar": lambda folder, **keep: tar_dataset(str(folder), 3, labels=3, **keep),
    "array_record": lambda folder, **keep: record_dataset(folder, 3, **keep),
    "parquet": lambda folder, **keep: parquet_dataset(str(folder), 3, **keep),
}

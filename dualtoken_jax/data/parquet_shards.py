"""Examples of Parquet shards with the pictures' bytes in them, as on the Hugging Face hub."""

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken_jax.data.cache import Cache
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.prepared import PreparedFiles
from dualtoken_jax.data.sources import Example
from dualtoken_jax.data.storage import RangeFile, Storage

IMAGES = ("image", "jpg", "png", "webp")  # names of the columns, the first that is there
CAPTIONS = ("caption", "text", "TEXT", "txt")  # a filter judges the column that training reads
LABELS = ("label",)
FOOTERS = 64  # kept in memory
GROUP_BYTES = 256 * 2**20  # of row groups kept in memory


class Layout(NamedTuple):
    """Where the examples of a Parquet file are."""

    metadata: pq.FileMetaData
    image: str  # name of a column of bytes, or of {bytes, path}
    caption: str | None
    label: str | None
    class_names: tuple[str, ...]  # as the hub's datasets write them into the schema
    starts: np.ndarray  # int64 [groups + 1]: first row of every row group, then of all


def read_layout(storage: Storage, path: str, size: int) -> Layout:
    """Reads the footer of a Parquet file of `size` bytes.

    Raises ValueError for a file that is no Parquet or has no column of pictures, OSError where storage fails.
    """
    file = RangeFile(storage, path, size)
    try:
        metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        if file.failure:
            raise file.failure from error
        raise ValueError(f"{path} is no whole Parquet file: {error}") from error
    image = next((name for name in IMAGES if name in schema.names and _holds_bytes(schema.field(name).type)), None)
    if image is None:
        raise ValueError(f"{path} has no column of picture bytes: looked for {IMAGES} in {list(schema.names)}")
    caption = next((n for n in CAPTIONS if n in schema.names and _is_text(schema.field(n).type)), None)
    label = next((n for n in LABELS if n in schema.names and pa.types.is_integer(schema.field(n).type)), None)
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
    return Layout(metadata, image, caption, label, _class_names(schema, label), starts)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _holds_bytes(kind.field(position).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """Of a `ClassLabel` feature of the `datasets` library; empty where there is none."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


class ParquetShards:
    """Reads the Parquet shards of a prepared dataset; thread-safe. A row group is read as a whole, and kept a while."""

    def __init__(self, files: PreparedFiles) -> None:
        """Opens nothing."""
        self._files = files
        self._layouts = Cache(FOOTERS)
        self._groups = Cache(GROUP_BYTES, _bytes_of)

    def read(self, number: int, rows: np.ndarray) -> list[Example | BadImage]:
        """As TarShards.read; BadImage for rows without bytes and for those of a row group that is damaged."""
        path = self._files.path(number)
        layout = self._layouts.get(number, lambda: self._layout(number, path))
        positions = self._files.rows(number, rows)
        groups = np.searchsorted(layout.starts, positions, side="right") - 1
        tables = {group: self._group(number, path, layout, group) for group in np.unique(groups).tolist()}
        found = []
        for position, group in zip(positions.tolist(), groups.tolist(), strict=True):
            found.append(_example(tables[group], layout, position - int(layout.starts[group]), f"{path}/{position}"))
        return found

    def _layout(self, number: int, path: str) -> Layout:
        shard = self._files.shard(number)
        layout = read_layout(self._files.storage, path, shard.bytes)
        if not shard.index and layout.starts[-1] != shard.examples:
            raise ValueError(f"{path} has {layout.starts[-1]} rows instead of {shard.examples}: prepare it again")
        return layout

    def _group(self, number: int, path: str, layout: Layout, group: int) -> pa.Table | BadImage:
        return self._groups.get((number, group), lambda: self._read_group(number, path, layout, group))

    def _read_group(self, number: int, path: str, layout: Layout, group: int) -> pa.Table | BadImage:
        source = RangeFile(self._files.storage, path, self._files.shard(number).bytes)
        columns = [name for name in (layout.image, layout.caption, layout.label) if name is not None]
        try:
            with pq.ParquetFile(source, metadata=layout.metadata, pre_buffer=True) as file:
                return file.read_row_group(group, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            if source.failure:
                raise source.failure from error
            return BadImage("damaged-record", f"row group {group}: {error}", path)

    def close(self) -> None:
        """Forgets footers and row groups; no file is ever kept open."""
        self._layouts.clear()
        self._groups.clear()


def _bytes_of(group: pa.Table | BadImage) -> int:
    return group.nbytes if isinstance(group, pa.Table) else 0


def _example(table: pa.Table | BadImage, layout: Layout, row: int, origin: str) -> Example | BadImage:
    if isinstance(table, BadImage):
        return table
    image = table[layout.image][row].as_py()
    image = image["bytes"] if isinstance(image, dict) else image
    if image is None:
        return BadImage("empty", "the row has no bytes", origin)
    caption = table[layout.caption][row].as_py() if layout.caption else None
    label = table[layout.label][row].as_py() if layout.label else None
    return Example(image, caption, label if label is not None and label >= 0 else None, origin)

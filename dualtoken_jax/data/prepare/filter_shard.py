"""Filters one shard: its metadata, its old index and the rules → its new index."""

import dataclasses

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dualtoken_jax.data.manifest import Kind, Manifest, Shard, checksum_of, join
from dualtoken_jax.data.prepare import filter_rules
from dualtoken_jax.data.prepare.filter_rules import Rules
from dualtoken_jax.data.prepare.ledger import Ledger
from dualtoken_jax.data.prepared import PreparedFiles
from dualtoken_jax.data.storage import Storage, write_whole
from dualtoken_jax.data.tar_index import index_bytes


@dataclasses.dataclass(frozen=True)
class ShardFilter:
    """The job of one worker; picklable, and small, because it travels with every shard."""

    kind: Kind  # of the manifest
    dataset: str  # folder or URL of the manifest
    root: str  # of the shards
    output: str  # folder or URL
    rules: Rules
    columns: dict[str, str]  # named by the user: name of SYNONYMS → column

    def __call__(self, item: tuple[int, Shard]) -> None:
        """Writes the new index of shard number item[0] and enters it in the ledger.

        Raises FileNotFoundError or ValueError, with the file, for metadata that are missing or do not fit.
        """
        number, shard = item
        files = PreparedFiles(self.dataset, Manifest(self.kind, (shard,), self.root), Storage())
        old = files.index(0) if shard.index else np.arange(shard.examples, dtype=np.uint32)
        kept, dropped = self._judge(files.path(0), old)
        data = index_bytes(old[kept])
        name = f"index/{number:05d}.npy"
        write_whole(join(self.output, name), data)
        left = shard._replace(examples=int(kept.sum()), index=name, index_checksum=checksum_of(data))
        Ledger(self.output).add(number, left, dropped)

    def _judge(self, shard: str, old: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
        path = shard if self.kind == "parquet" else shard.removesuffix(".tar") + ".parquet"
        try:
            with fsspec.open(path, "rb") as file:
                table, wanted = self._read(pq.ParquetFile(file))
            rows = _rows_of(table["key"], old["key"]) if self.kind == "tar" else old
            return filter_rules.apply(self.rules, {what: table[name].take(rows) for what, name in wanted.items()})
        except FileNotFoundError:
            raise FileNotFoundError(
                f"there is no {path} with the metadata of {shard}; img2dataset writes it beside the shard"
            ) from None
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{path}: {error}") from error

    def _read(self, parquet: pq.ParquetFile) -> tuple[pa.Table, dict[str, str]]:
        names = parquet.schema_arrow.names
        wanted = filter_rules.columns_of(self.rules, names, self.columns)
        if self.kind == "tar" and "key" not in names:
            raise ValueError(f"there is no column key to find the pictures by, but {', '.join(names)}")
        key = ["key"] if self.kind == "tar" else []
        return parquet.read(columns=list(dict.fromkeys([*wanted.values(), *key]))), wanted


def _rows_of(keys: pa.ChunkedArray, wanted: np.ndarray) -> np.ndarray:
    """Where `wanted` (bytes [n]: keys of a tar shard, perhaps below a folder) stand among the parquet file's keys."""
    names = [key.rsplit(b"/", 1)[-1] for key in wanted.tolist()]
    keys = keys.cast(pa.string()).cast(pa.binary())
    rows = pc.index_in(pa.array(names, pa.binary()), value_set=keys)
    if rows.null_count:
        missing = names[rows.is_null().index(True).as_py()]
        raise ValueError(
            f"{rows.null_count} of {len(names)} pictures of the shard are not in it, such as {missing.decode()!r}: the "
            "two files are of different downloads"
        )
    if pc.count_distinct(keys).as_py() < len(keys):
        raise ValueError("it has a key twice, and which row is the picture's cannot be told")
    return rows.to_numpy()

"""python -m dualtoken_jax.data.prepare filter DATASET --output=FOLDER [RULES]

Drops examples by their metadata: writes a new manifest and new indices, of the examples that are left. Shards are not
touched, nor is the old manifest. For tar shards the metadata are in the parquet file that img2dataset writes beside
each (00000.tar, 00000.parquet) and are joined by key; for Parquet shards they are columns of the shard.

Unsafe rows are dropped unless you say otherwise, and a row without a tag or score counts as unsafe. Recommended data:
Re-LAION-5B research-safe, or DataComp (with --unsafe=keep: there is no column, its makers dropped unsafe pictures).
Nothing needs to be square, training crops: download without padding, with img2dataset's --resize_mode=keep_ratio or no,
not with its default "border".
"""

import argparse
import dataclasses
from collections import Counter

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken_jax.data.manifest import Manifest, Shard, checksum_of, join, read_manifest, write_manifest
from dualtoken_jax.data.prepare import filter_rules, workers
from dualtoken_jax.data.prepare.filter_rules import SYNONYMS, Rules
from dualtoken_jax.data.prepare.ledger import Ledger
from dualtoken_jax.data.storage import Storage
from dualtoken_jax.data.tar_index import index_bytes, read_index


def filter_dataset(dataset: str, output: str, rules: Rules, columns: dict[str, str], count: int = 1) -> Manifest:
    """Writes the manifest of what the rules leave to `output`, in `count` processes, and returns it.

    Raises:
      FileNotFoundError: there is no manifest, or no parquet file beside a tar shard.
      FileExistsError: `output` holds a dataset already.
      ValueError: the dataset is of ArrayRecord shards, a column is missing or of the wrong type, metadata do not belong
        to their shard, or nothing would be left.
    """
    manifest = read_manifest(dataset)
    if manifest.kind == "array_record":
        raise ValueError(
            f"{dataset} consists of ArrayRecord shards, which have no metadata to filter by: filter the tar or Parquet "
            "shards that they were converted from, and convert what is left"
        )
    ledger = Ledger(output)
    ledger.begin({"filter": manifest.fingerprint, "rules": dataclasses.asdict(rules), "columns": columns})
    root = manifest.root or dataset
    job = ShardFilter(manifest.kind, dataset, root, output, rules, columns)
    done = ledger.done()
    workers.run(job, [item for item in enumerate(manifest.shards) if item[0] not in done], count)
    filtered = _conclude(manifest, root, rules, ledger.done())
    write_manifest(output, filtered)
    ledger.close()
    return filtered


@dataclasses.dataclass(frozen=True)
class ShardFilter:
    """Filters one shard; picklable, and small: it travels with every shard."""

    kind: str
    dataset: str  # folder or URL of the manifest
    root: str  # of the shards
    output: str
    rules: Rules
    columns: dict[str, str]

    def __call__(self, item: tuple[int, Shard]) -> None:
        """Writes the new index of shard number item[0] and enters it in the ledger."""
        number, shard = item
        old = self._old_index(shard)
        kept, dropped = self._judge(join(self.root, shard.name), old)
        data = index_bytes(old[kept])
        name = f"index/{number:05d}.npy"
        _write(join(self.output, name), data)
        left = shard._replace(examples=int(kept.sum()), index=name, index_checksum=checksum_of(data))
        Ledger(self.output).add(number, left, dropped)

    def _old_index(self, shard: Shard) -> np.ndarray:
        """Rows of the tar index; numbers of the rows of a Parquet shard."""
        if not shard.index:
            return np.arange(shard.examples)
        path = join(self.dataset, shard.index)
        data = Storage().read(path)
        if checksum_of(data) != shard.index_checksum:
            raise ValueError(f"{path} is not the index that the manifest names: make the dataset again")
        return read_index(data)

    def _judge(self, shard: str, old: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
        path = shard if self.kind == "parquet" else shard.removesuffix(".tar") + ".parquet"
        try:
            with fsspec.open(path, "rb") as file:
                parquet = pq.ParquetFile(file)
                names = parquet.schema_arrow.names
                wanted = filter_rules.columns_of(self.rules, names, self.columns)
                if self.kind == "tar" and "key" not in names:
                    raise ValueError(f"there is no column key to find the pictures by, but {', '.join(names)}")
                key = ["key"] if self.kind == "tar" else []
                table = parquet.read(columns=list(dict.fromkeys([*wanted.values(), *key])))
            rows = _rows_of(table["key"], old["key"]) if self.kind == "tar" else old
            return filter_rules.apply(self.rules, {what: table[name].take(rows) for what, name in wanted.items()})
        except FileNotFoundError:
            raise FileNotFoundError(
                f"there is no {path} with the metadata of {shard}: img2dataset writes it beside the shard"
            ) from None
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{path}: {error}") from error


def _rows_of(keys: pa.ChunkedArray, wanted: np.ndarray) -> np.ndarray:
    """Where `wanted` (bytes [n]: keys of a tar shard, perhaps below a folder) stand among the parquet file's keys."""
    keys = np.char.encode(keys.cast(pa.string()).to_numpy().astype(str), "utf-8")
    names = np.array([key.rsplit(b"/", 1)[-1] for key in wanted.tolist()], wanted.dtype)
    order = np.argsort(keys, kind="stable")
    found = np.searchsorted(keys, names, sorter=order)
    found = order[np.minimum(found, len(keys) - 1)] if len(keys) else np.zeros(len(names), int)
    missing = names[keys[found] != names] if len(keys) else names
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(names)} pictures of the shard are not in it, such as {missing[0].decode()!r}: the "
            "two files are of different downloads"
        )
    if len(np.unique(keys)) < len(keys):
        raise ValueError("a key comes up twice in it")
    return found

"""Codes on disk: one .npz file for a few thousand pictures, a folder of ArrayRecord shards for millions.

A record is a dict of `pixel` and `semantic` (unsigned [h, w, D]; absent where the model lacks the vocabulary), `label`
(int, -1 for none), `caption` (str, '' for none), `origin` (file name, '' for none) and `index` (in the source). In a
shard it is packed by flax.serialization.msgpack_serialize, so that shapes and types travel with every record.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize

BRANCHES = ("pixel", "semantic")
_HEADER = "codes.json"  # in a folder of shards; written last, so that it marks a finished folder
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CodesHeader:
    """Whose codes they are."""

    model: str  # name of the recipe
    step: int  # of the checkpoint
    codebooks: str  # fingerprint of the codebooks: codes mean nothing to other ones
    image_size: int  # pixels
    quantizers: dict[str, dict[str, int]]  # by branch: `codes` K, `depth` D and `grid` h = w


class StoredCodes(Sequence[Record]):
    """Random access to records, codes as int32; fit for grain.MapDataset.source."""

    def __init__(self, header: CodesHeader, rows: Sequence[Record]):
        self.header, self._rows = header, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        record = dict(self._rows[int(index)])
        return record | {branch: record[branch].astype(np.int32) for branch in BRANCHES if branch in record}


def read_codes(path: str | Path) -> StoredCodes:
    """The codes in an .npz file or a folder of shards.

    Raises FileNotFoundError where there are none, ValueError for something else or an unfinished folder.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no codes at {path}")
    return _read_shards(path) if path.is_dir() else _read_npz(path)


def write_npz(path: Path, header: CodesHeader, records: Iterable[Record]) -> int:
    """Writes all records, which it holds in memory, and returns their number."""
    rows = list(records)
    if not rows:
        raise ValueError("there is no picture to write codes of")
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, header=np.array(json.dumps(dataclasses.asdict(header))), **columns)
    partial.replace(path)
    return len(rows)


def write_shards(folder: Path, header: CodesHeader, records: Iterable[Record], shards: int) -> int:
    """Writes record i to shard i % shards and returns the number of records; holds one record in memory.

    Raises FileExistsError for a folder that already holds codes.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    if (folder / _HEADER).exists():
        raise FileExistsError(f"{folder} already holds codes; remove them or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("codes-*.array_record"):  # of a run that did not finish
        leftover.unlink()
    files = [folder / f"codes-{number:05d}-of-{shards:05d}.array_record" for number in range(shards)]
    writers, count = [ArrayRecordWriter(str(file), "group_size:1") for file in files], 0
    try:
        for record in records:
            writers[count % shards].write(msgpack_serialize(record))
            count += 1
    finally:
        for writer in writers:
            writer.close()
    if not count:
        raise ValueError("there is no picture to write codes of")
    contents = {"examples": count, "shards": shards, **dataclasses.asdict(header)}
    (folder / _HEADER).write_text(json.dumps(contents, indent=1) + "\n")
    return count


def _read_npz(path: Path) -> StoredCodes:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
        header = CodesHeader(**json.loads(str(columns.pop("header"))))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is no file of codes: {error}") from error
    return StoredCodes(header, _Columns(columns))


def _read_shards(folder: Path) -> StoredCodes:
    if not (folder / _HEADER).exists():
        raise ValueError(f"{folder} holds no {_HEADER}: it is no folder of codes, or writing them did not finish")
    contents = json.loads((folder / _HEADER).read_text())
    count, shards = contents.pop("examples"), contents.pop("shards")
    return StoredCodes(CodesHeader(**contents), _Shards(folder, count, shards))


class _Columns(Sequence[Record]):
    """Rows of equally long arrays."""

    def __init__(self, columns: dict[str, np.ndarray]):
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns["index"])

    def __getitem__(self, index: int) -> Record:
        row = {name: column[index] for name, column in self._columns.items()}
        return {name: value if value.ndim else value.item() for name, value in row.items()}


class _Shards(Sequence[Record]):
    """Records in the order in which they were written."""

    def __init__(self, folder: Path, count: int, shards: int):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        names = [folder / f"codes-{number:05d}-of-{shards:05d}.array_record" for number in range(shards)]
        if missing := [name.name for name in names if not name.exists()]:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
        # Shards beyond the number of records are empty, and an empty file has nothing to open.
        self._sources = [ArrayRecordDataSource([str(name)]) for name in names[: min(shards, count)]]
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not -self._count <= index < self._count:
            raise IndexError(f"record {index} is outside [0, {self._count})")
        within, shard = divmod(index % self._count, len(self._sources))
        return msgpack_restore(self._sources[shard][within])

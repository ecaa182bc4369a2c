"""What a prepared dataset consists of: every shard with its size, its checksum and how many examples it has.

A prepared dataset is a folder or a URL with `manifest.json` and, where shards need one, an index per shard under
`index/`. Start-up reads the manifest alone: with 41,455 shards, none of them is opened before a picture of it is due.
"""

import dataclasses
import hashlib
import json
from typing import Literal, NamedTuple

import fsspec
import numpy as np

from dualtoken_jax.data.storage import write_whole

FILE = "manifest.json"
VERSION = 1
Kind = Literal["tar", "array_record", "parquet"]


class Shard(NamedTuple):
    """One file of examples."""

    name: str  # relative to the manifest's `root`, with forward slashes
    examples: int  # that the dataset has of it, after any filter
    bytes: int  # of the file
    checksum: str  # `checksum_of` its bytes
    # Name of its index (.npy) relative to the manifest's folder: where the examples are in a tar shard; which rows are
    # left, in a filtered ArrayRecord or Parquet shard. Empty where all rows 0 … examples − 1 are.
    index: str = ""
    index_checksum: str = ""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All shards, in the order in which their examples are numbered."""

    kind: Kind
    shards: tuple[Shard, ...]
    root: str = ""  # folder or URL that holds the shards; empty where they lie beside the manifest
    class_names: tuple[str, ...] = ()  # label i is called class_names[i]; empty without labels
    # What it lacks and why, for people: the rules of a filter and how many examples each dropped, what a conversion or
    # an index (under "index", by shard) left out; {} where it lacks nothing.
    filtered: dict = dataclasses.field(default_factory=dict)

    @property
    def starts(self) -> np.ndarray:
        """int64 [shards + 1]: number of each shard's first example, then of all examples."""
        return np.concatenate([[0], np.cumsum([shard.examples for shard in self.shards], dtype=np.int64)])

    @property
    def fingerprint(self) -> str:
        """Digest of what determines example i; not of where the files lie, so that a dataset may be moved."""
        contents = [self.kind, self.class_names, self.shards]
        return hashlib.blake2b(json.dumps(contents).encode(), digest_size=16).hexdigest()


def checksum_of(*parts: bytes) -> str:
    """BLAKE2b of the concatenated parts, 32 hexadecimal digits; checksums of shards and indices are this."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def join(folder: str, name: str) -> str:
    """`name` inside a folder or URL."""
    return f"{folder.rstrip('/')}/{name}"


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Writes it whole or not at all. Raises OSError."""
    contents = {"version": VERSION, **dataclasses.asdict(manifest)}
    contents["shards"] = [list(shard) for shard in manifest.shards]
    write_whole(join(str(folder), FILE), json.dumps(contents).encode())


def read_manifest(folder: str) -> Manifest:
    """The manifest in a folder or URL.

    Raises FileNotFoundError where there is none, ValueError for one that is damaged or from another version.
    """
    where = join(str(folder), FILE)
    try:
        with fsspec.open(where, "rb") as file:
            contents = json.loads(file.read())
        version = contents.pop("version")
        if version != VERSION:
            raise ValueError(f"version {version}, this program reads {VERSION}: prepare the dataset again")
        contents["shards"] = tuple(Shard(*shard) for shard in contents["shards"])
        return Manifest(**contents | {"class_names": tuple(contents["class_names"])})
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no {where}: make it with `python -m dualtoken_jax.data.prepare index` or `convert`"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{where} is no manifest of a prepared dataset: {error!r}; restore it, or remove it and make it again with "
            "`python -m dualtoken_jax.data.prepare index`"
        ) from error

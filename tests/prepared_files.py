"""Small prepared datasets for the tests of filter, convert and stats."""

from pathlib import Path

import numpy as np

from dualtoken_jax.data.manifest import Manifest, Shard, checksum_of, write_manifest
from dualtoken_jax.data.shards import Shards
from dualtoken_jax.data.sources import Example
from dualtoken_jax.data.storage import Storage
from dualtoken_jax.data.tar_index import index_bytes, index_tar


def index_folder(folder: Path, class_names: tuple[str, ...] = ()) -> Manifest:
    """Makes a dataset of the tar shards in `folder`."""
    (folder / "index").mkdir(exist_ok=True)
    shards = []
    for path in sorted(folder.glob("*.tar")):
        found = index_tar(Storage(), str(path))
        data, name = index_bytes(found.rows), f"index/{path.stem}.npy"
        (folder / name).write_bytes(data)
        shards.append(Shard(path.name, len(found.rows), found.bytes, found.checksum, name, checksum_of(data)))
    manifest = Manifest("tar", tuple(shards), class_names=class_names)
    write_manifest(str(folder), manifest)
    return manifest


def examples_of(folder: Path) -> list[Example]:
    """All examples of a dataset, in order."""
    source = Shards(str(folder), "all")
    return source.read(np.arange(len(source)))


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

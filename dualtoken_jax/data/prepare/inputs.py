"""What can be converted, as something that travels to a worker and is opened there, once per process."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np

from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.manifest import FILE, join, read_manifest
from dualtoken_jax.data.npy import npy_bytes, read_npy
from dualtoken_jax.data.prepare import imagenet_tars
from dualtoken_jax.data.shards import Shards
from dualtoken_jax.data.sources import Example, Folder, Source
from dualtoken_jax.data.storage import Storage, is_remote


@dataclasses.dataclass(frozen=True)
class Input:
    """Where examples come from; picklable and hashable."""

    kind: Literal["dataset", "folder", "imagenet"]
    path: str  # folder or URL of the dataset, folder of pictures, or tar file
    root: str = ""  # folder that origins of examples begin with, which their keys leave out
    index: str = ""  # imagenet: .npy file of the tar's rows
    class_names: tuple[str, ...] = ()  # imagenet


@functools.lru_cache(maxsize=1)
def open_input(given: Input) -> Source:
    """The source, kept for the next shard that this process makes. Raises as the sources do."""
    if given.kind == "dataset":
        return Shards(given.path, "all")
    if given.kind == "folder":
        return Folder(given.path, "all")
    rows = read_npy(Storage().read(given.index), imagenet_tars.ROW)
    return imagenet_tars.ImageNetTar(given.path, rows, given.class_names)


def find_input(path: str) -> Input:
    """The prepared dataset (folder or URL) or folder of pictures at `path`.

    Raises FileNotFoundError or ValueError where there is neither.
    """
    open_input.cache_clear()  # what is there may be another dataset than when this process last looked
    files, inside = fsspec.core.url_to_fs(join(path, FILE))
    if files.exists(inside):
        return Input("dataset", path, root=read_manifest(path).root or path.rstrip("/"))
    if is_remote(path):
        raise FileNotFoundError(f"there is no {join(path, FILE)}; pictures in folders are read from local disks only")
    folder = Path(path).expanduser()
    if next(folder.glob("*.tar"), None):
        raise ValueError(
            f"{path} has tar files and no {FILE}: index them with `python -m dualtoken_jax.data.prepare index`, or "
            "name the file if it is ImageNet's"
        )
    return Input("folder", str(folder), root=str(folder))


def imagenet_input(path: str, labels: str | None, names: str | None, index: str) -> Input:
    """One of ImageNet's tar files; its headers are read, and the rows written to `index`.

    Args:
      labels: file with the classes of the validation pictures; None for the training pictures.
      names: file with the names of the classes; None calls them by their synsets, and there are no captions.

    Raises FileNotFoundError or ValueError where the files are others.
    """
    open_input.cache_clear()
    rows, synsets = imagenet_tars.index_validation(path, labels) if labels else imagenet_tars.index_train(path)
    class_names = imagenet_tars.read_names(names, synsets) if names else tuple(synsets)
    with fsspec.open(index, "wb", auto_mkdir=True) as file:
        file.write(npy_bytes(rows))
    return Input("imagenet", path, index=index, class_names=class_names)


def read_each(source: Source, indices: np.ndarray) -> Iterator[Example | BadImage]:
    """The examples at `indices` [n]; in the place of one that is damaged, how. Raises OSError where storage fails."""
    try:
        yield from source.read(indices)
    except BadImage as error:
        if len(indices) == 1:
            yield error
            return
        for index in indices:  # one by one, to lose only what is damaged
            yield from read_each(source, np.array([index]))

"""What can be converted, as something that travels to a worker and is opened there, once per process."""

import dataclasses
import functools
import io
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np

from dualtoken_jax.data.manifest import FILE, checksum_of, join, read_manifest
from dualtoken_jax.data.prepare import imagenet_tars
from dualtoken_jax.data.shards import Shards
from dualtoken_jax.data.sources import Folder, Source
from dualtoken_jax.data.storage import Storage, is_remote


@dataclasses.dataclass(frozen=True)
class Input:
    """Where examples come from; picklable and hashable."""

    kind: Literal["dataset", "folder", "imagenet"]
    path: str  # folder or URL of the dataset, folder of pictures, or tar file
    root: str  # what the origins of examples begin with; it is left out of their keys
    fingerprint: str  # of what determines the examples, wherever they lie
    index: str = ""  # imagenet: .npy file of the tar's rows
    class_names: tuple[str, ...] = ()  # imagenet
    filtered: tuple[tuple[str, object], ...] = ()


@functools.lru_cache(maxsize=1)
def open_input(origin: Input) -> Source:
    """The source, kept for the next shard that this process makes. Raises as the source does."""
    if origin.kind == "dataset":
        return Shards(origin.path, "all")
    if origin.kind == "folder":
        return Folder(origin.path, "all")
    rows = np.load(io.BytesIO(Storage().read(origin.index)), allow_pickle=False)
    return imagenet_tars.ImageNetTar(origin.path, rows, origin.class_names)


def find_input(path: str, index: str, labels: str | None, names: str | None) -> Input:
    """What stands at `path`.

    Args:
      path: folder or URL of a prepared dataset, a folder of pictures, or one of ImageNet's tar files.
      index: where the rows of a tar file are written.
      labels: of ImageNet's validation pictures; None for the training pictures.
      names: file with the names of ImageNet's classes; None to call them by their synsets.

    Raises FileNotFoundError or ValueError for something else.
    """
    if path.endswith(".tar"):
        return _imagenet(path, index, labels, names)
    if labels or names:
        raise ValueError(f"--labels and --class_names are for ImageNet's tar files, and {path} is none")
    files, inside = fsspec.core.url_to_fs(join(path, FILE))
    if files.exists(inside):
        manifest = read_manifest(path)
        root = manifest.root or path
        return Input("dataset", path, root, manifest.fingerprint)
    if is_remote(path):
        raise FileNotFoundError(f"there is no {join(path, FILE)}, and folders of pictures are read from local disks only")
    return _folder(path)


def _folder(path: str) -> Input:
    folder = Path(path).expanduser()
    if folder.is_dir() and any(folder.glob("*.tar")):
        raise ValueError(
            f"{path} holds tar shards and no {FILE}: `python -m dualtoken_jax.data.prepare index {path}` makes it"
        )
    pictures = Folder(folder, "all")
    origins = [str(example) for example in pictures.files]
    return Input("folder", str(folder), str(folder), checksum_of("\n".join(origins).encode("utf-8", "surrogateescape")))


def _imagenet(path: str, index: str, labels: str | None, names: str | None) -> Input:
    rows, synsets = imagenet_tars.index_validation(path, labels) if labels else imagenet_tars.index_train(path)
    class_names = imagenet_tars.read_names(names, synsets) if names else tuple(synsets)
    ...

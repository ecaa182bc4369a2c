"""Random access to examples: one class per kind of storage, one contract for all of them."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np


class Example(NamedTuple):
    """One example as it is stored, before any crop or normalisation."""

    image: np.ndarray | bytes  # uint8 [H, W, 3], or an encoded JPEG/PNG/WebP file
    caption: str | None  # None where the source has no text
    label: int | None  # index into the source's class_names, None where there is none
    origin: str = ""  # the file or shard member it came from, for messages only


class Source(Protocol):
    """What every source offers; reading must be thread-safe and free of hidden state."""

    class_names: tuple[str, ...]  # empty where the source has no labels
    fingerprint: str  # digest of what determines which example has which index; the same on every host

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> list[Example]:
        """Examples at `indices` (int64 [n], each in [0, len)), in that order.

        Raises OSError where storage fails; BadImage where an example's own bytes are known to be bad. Asked for one by
        one, the other examples can still be had.
        """
        ...


def digest_of(names: Sequence[str]) -> str:
    """A fingerprint of a list of names, or of other fingerprints."""
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        digest.update(os.fsencode(name) + b"\0")  # no file name holds a zero byte
    return digest.hexdigest()


IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


class Files:
    """Pictures named one by one, without labels or captions."""

    class_names = ()

    def __init__(self, paths: Sequence[str | os.PathLike]) -> None:
        """Opens nothing."""
        self._paths = list(paths)

    @property
    def fingerprint(self) -> str:
        """Digest of the paths as they were given, in their order."""
        return digest_of([os.fspath(path) for path in self._paths])

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: np.ndarray) -> list[Example]:
        """Examples with the encoded bytes of the files. OSError, with the file name, where one cannot be read."""
        paths = [self._paths[int(index)] for index in indices]
        return [Example(Path(path).read_bytes(), None, None, str(path)) for path in paths]


class Selection:
    """Some examples of a source, in the order of `indices` [n]."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        """Reads nothing."""
        self._source, self._indices = source, np.asarray(indices, np.int64)
        self.class_names = source.class_names

    @property
    def fingerprint(self) -> str:
        """See Source."""
        return digest_of([self._source.fingerprint, self._indices.tobytes().hex()])

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: np.ndarray) -> list[Example]:
        """As the source's."""
        return self._source.read(self._indices[indices])


def spread(source: Source, count: int) -> Selection:
    """At most `count` examples, at even distances, so that a folder sorted by class gives some of every class."""
    size = len(source)
    count = min(count, size)
    return Selection(source, np.arange(count) * size // max(count, 1))


class Folder:
    """A folder of pictures, as the user has it: nothing is converted, files are read when they are needed.

    Pictures are found at any depth, in sorted order; names that begin with a dot are passed over. The first level of
    sub-folders, where there is one, names the classes. The caption is the `.txt` file beside the picture, else
    "a photo of a <class>", else None. A file belongs to train or eval by a hash of its path inside the folder, so that
    adding files moves none of the others across.
    """

    def __init__(
        self, path: str | os.PathLike, split: Literal["train", "eval", "all"], eval_fraction: float = 0.1
    ) -> None:
        """Lists the folder; no picture is opened.

        Raises:
          FileNotFoundError, NotADirectoryError: there is no such folder.
          ValueError: it holds no pictures, or `split` or `eval_fraction` is impossible.
        """
        if split not in ("train", "eval", "all"):
            raise ValueError(f"split must be 'train', 'eval' or 'all', got {split!r}")
        if not 0 < eval_fraction < 1:
            raise ValueError(f"eval_fraction must lie strictly between 0 and 1, got {eval_fraction}")
        self._root = Path(path).expanduser()
        found, captioned = _list_images(self._root)
        self.class_names = tuple(sorted({_class_name(file) for file in found} - {""}))
        self._files = _split_files(found, split, eval_fraction)
        self._captioned = captioned
        self._labels = {name: label for label, name in enumerate(self.class_names)}

    @property
    def fingerprint(self) -> str:
        """Digest of the names of this split's files inside the folder, in their order."""
        return digest_of(self._files)

    @property
    def has_captions(self) -> bool:
        """Whether every example of this split has a caption."""
        return all(file in self._captioned or _class_name(file) for file in self._files)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: np.ndarray) -> list[Example]:
        """Examples with the encoded bytes of their files. OSError, with the file name, where one cannot be read."""
        return [self._read_one(self._files[int(index)]) for index in indices]

    def _read_one(self, file: str) -> Example:
        path = self._root / file
        return Example(path.read_bytes(), self._caption(file), self._labels.get(_class_name(file)), str(path))

    def _caption(self, file: str) -> str | None:
        if file in self._captioned:
            # Captions come from anywhere: a byte that is not UTF-8 must not end a training run.
            return (self._root / file).with_suffix(".txt").read_text("utf-8-sig", errors="replace").strip()
        name = _class_name(file)
        return f"a photo of a {name.replace('_', ' ')}" if name else None


def _list_images(root: Path) -> tuple[list[str], set[str]]:
    """Pictures below `root` as sorted relative paths with forward slashes, and those of them with a caption file."""
    if not root.exists():
        raise FileNotFoundError(f"there is no image folder {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; give the folder that holds the pictures")
    found, captioned = [], set()
    for folder, names in _walk(root):
        texts = {Path(name).stem for name in names if name.endswith(".txt")}
        for name in names:
            if name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith("."):  # macOS leaves ._photo.jpg about
                file = (Path(folder) / name).relative_to(root).as_posix()
                found.append(file)
                captioned.update([file] if Path(name).stem in texts else [])
    if not found:
        raise ValueError(f"{root} holds no pictures, at any depth: looked for files ending in {IMAGE_EXTENSIONS}")
    return sorted(found), captioned


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """os.walk through symbolic links, each real folder once, stopping at folders that cannot be listed."""

    def refuse(error: OSError) -> None:
        raise error  # os.walk would pass the folder over in silence, and the dataset would be smaller than it looks

    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        # Sorted, so that of two links to one folder the same one is taken everywhere.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            seen.add(real)
            yield folder, names


def _class_name(file: str) -> str:
    return file.split("/", 1)[0] if "/" in file else ""


def _split_files(files: list[str], split: str, eval_fraction: float) -> list[str]:
    """The files of one split. Neither split is ever empty; a single file belongs to both."""
    if len(files) == 1 or split == "all":
        return files
    digests = [hashlib.blake2b(os.fsencode(file), digest_size=8).digest() for file in files]
    rank = np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64) / 2.0**64
    in_eval = rank < eval_fraction
    in_eval[np.argmin(rank)], in_eval[np.argmax(rank)] = True, False
    return [files[position] for position in np.flatnonzero(in_eval == (split == "eval"))]

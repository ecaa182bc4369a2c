"""The tar files of ILSVRC 2012 as a source: pictures are found by their headers and read where they lie.

ILSVRC2012_img_train.tar is a tar of 1,000 tars, n01440764.tar and so on, one per class. ILSVRC2012_img_val.tar holds
the pictures themselves, and their classes are in a text file: either one synset (n01751748) per line, in the order of
the pictures' names, or the development kit's ILSVRC2012_validation_ground_truth.txt. That one has numbers, whose
meaning is in the kit's meta.mat, which must lie beside it. Label i is the i-th synset in alphabetical order, as in
TFDS and torchvision.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np

from dualtoken_jax.data.manifest import checksum_of
from dualtoken_jax.data.prompts import read_prompts
from dualtoken_jax.data.sources import Example
from dualtoken_jax.data.storage import Storage

ROW = np.dtype([("start", "<u8"), ("bytes", "<u4"), ("label", "<i4"), ("key", "S64")])
_SYNSET = re.compile(r"n\d{8}")


class ImageNetTar:
    """Source over the rows that `index_train` or `index_validation` found."""

    def __init__(self, path: str, rows: np.ndarray, class_names: tuple[str, ...]) -> None:
        """Opens nothing."""
        self._path, self._rows, self._storage = path, rows, Storage()
        self.class_names = class_names
        self._named = not any(_SYNSET.fullmatch(name) for name in class_names)

    @property
    def fingerprint(self) -> str:
        """See Source; of where the pictures are, not of what they show."""
        return checksum_of(self._rows.tobytes(), "\n".join(self.class_names).encode())

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> list[Example]:
        """Encoded pictures; the caption is "a photo of a CLASS" where classes have names. Raises OSError."""
        return [self._read_one(self._rows[int(index)]) for index in indices]

    def _read_one(self, row: np.void) -> Example:
        image = self._storage.read_exactly(self._path, int(row["start"]), int(row["bytes"]))
        label = int(row["label"])
        caption = f"a photo of a {self.class_names[label]}" if self._named else None
        return Example(image, caption, label, row["key"].decode())


def index_train(path: str) -> tuple[np.ndarray, list[str]]:
    """Rows of ROW, by class and then as they stand in the tar, and the synsets. ValueError for another tar."""
    by_synset = {}
    with fsspec.open(path, "rb") as file:
        for name, start, _ in _members(file, path):
            synset = Path(name).stem
            if not (_SYNSET.fullmatch(synset) and name.endswith(".tar")):
                raise ValueError(
                    f"{path} holds {name}, not n01440764.tar and so on: it is not ILSVRC2012_img_train.tar"
                )
            inner = _members(_From(file, start), f"{name} in {path}")
            by_synset[synset] = [(start + at, size, f"{synset}/{picture}") for picture, at, size in inner]
    synsets = sorted(by_synset)
    rows = [(at, size, i, key) for i, synset in enumerate(synsets) for at, size, key in by_synset[synset]]
    return _rows(path, rows), synsets


def index_validation(path: str, labels: str) -> tuple[np.ndarray, list[str]]:
    """Rows of ROW in the order of the pictures' names, and the synsets. ValueError where the two do not fit."""
    with fsspec.open(path, "rb") as file:
        pictures = sorted(_members(file, path))
    synset_of = read_labels(labels)
    if len(synset_of) != len(pictures):
        raise ValueError(
            f"{labels} has {len(synset_of)} lines, {path} has {len(pictures)} pictures; one each is needed"
        )
    synsets = sorted(set(synset_of))
    label_of = {synset: label for label, synset in enumerate(synsets)}
    rows = [(at, size, label_of[s], name) for (name, at, size), s in zip(pictures, synset_of, strict=True)]
    return _rows(path, rows), synsets


def read_labels(path: str) -> list[str]:
    """The synset of every validation picture, from either kind of text file. ValueError for another."""
    lines = Path(path).read_text().split()
    if lines and all(line.isdecimal() for line in lines):
        synset_of = _read_meta(Path(path).with_name("meta.mat"))
        if unknown := {int(line) for line in lines} - set(synset_of):
            raise ValueError(f"{path} names classes {sorted(unknown)[:5]}, which the meta.mat beside it does not have")
        return [synset_of[int(line)] for line in lines]
    if strange := [line for line in lines if not _SYNSET.fullmatch(line)]:
        raise ValueError(
            f"{path} must have a synset such as n01751748 in every line, or a number; it has {strange[0]!r}"
        )
    return lines


def _read_meta(path: Path) -> dict[int, str]:
    """ILSVRC2012_ID → synset, of the classes without sub-classes."""
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: the numbers of the ground truth mean classes by the development kit's meta.mat (in "
            "ILSVRC2012_devkit_t12/data), and by no other order; or give a file with one synset per line"
        )
    from scipy.io import loadmat  # a MATLAB file: arrays, no code

    synsets = loadmat(path, squeeze_me=True)["synsets"]
    return {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if int(one["num_children"]) == 0}


def read_names(path: str, synsets: list[str]) -> tuple[str, ...]:
    """The name of each synset: from lines such as "n01440764 tench, Tinca tinca", of which the first name counts, or
    from the JSON file of `read_prompts`, in the order of the synsets.

    Raises ValueError where one has none.
    """
    if path.endswith(".json"):
        classes = read_prompts(path).classes
        if len(classes) != len(synsets):
            raise ValueError(f"{path} names {len(classes)} classes, and the tar file has {len(synsets)}")
        return classes
    lines = (line.split(maxsplit=1) for line in Path(path).read_text("utf-8").splitlines())
    names = {line[0]: line[1].split(",")[0].strip() for line in lines if len(line) == 2}
    if missing := [synset for synset in synsets if synset not in names]:
        raise ValueError(
            f"{path} has no name for {len(missing)} classes, such as {missing[0]}: LOC_synset_mapping.txt has"
        )
    return tuple(names[synset] for synset in synsets)


def _members(file, path: str) -> Iterator[tuple[str, int, int]]:
    """(name, start, bytes) of every file in a tar that others have written: headers are read, data skipped."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile keeps them all
                if member.isfile():
                    yield member.name.removeprefix("./"), member.offset_data, member.size
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no tar file, or is damaged: {error}") from error


class _From:
    """A file as if it began at `start`."""

    def __init__(self, file, start: int) -> None:
        self._file, self._start, self._at = file, start, 0

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        self._at = position
        return position

    def read(self, length: int) -> bytes:
        self._file.seek(self._start + self._at)
        data = self._file.read(length)
        self._at += len(data)
        return data


def _rows(path: str, rows: list[tuple]) -> np.ndarray:
    if not rows:
        raise ValueError(f"{path} holds no pictures")
    return np.array([(at, size, label, key.encode()) for at, size, label, key in rows], ROW)

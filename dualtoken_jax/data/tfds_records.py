"""TensorFlow Datasets built with file_format=array_record, such as imagenet2012, read without TensorFlow."""

import hashlib
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from dualtoken_jax.data.array_records import ArrayRecords
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.numbering import Split, by_shard, held_out_every, split_indices, split_size
from dualtoken_jax.data.prompts import read_prompts
from dualtoken_jax.data.sources import Example
from dualtoken_jax.data.storage import Traffic

_BUILD = "build it with `tfds build imagenet2012 --file_format=array_record` and give the folder of the version"
_HELD_OUT = ("validation", "test")  # the first of them that was built is our "eval"


class TfdsRecords:
    """Random access to the undecoded pictures of a TFDS build; opening it reads its description and no records.

    Attributes:
      class_names: those of the build (synsets, for ImageNet), or the user's.
      traffic: requests (one per record) and bytes since this process has the source.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: Split,
        eval_fraction: float = 0.1,
        classes: str = "",
    ) -> None:
        """
        Args:
          path: folder or gs:// URL of the version, with dataset_info.json.
          split: "train", or "eval": TFDS's `validation`, else its `test`, else every round(1 / eval_fraction)-th
            example of `train`, which "train" then lacks. "all" is the whole of `train`.
          classes: a file {"classes": […], "templates": […]} with what the labels are called (`read_prompts`). Examples
            then have the caption "a photo of a <class>"; without it they have none, since synsets are no words.

        Raises:
          FileNotFoundError: there is no such build.
          ValueError: it is one of another format or has no pictures or no such split, or `classes` does not fit.
        """
        if split not in ("train", "eval", "all"):
            raise ValueError(f"split must be 'train', 'eval' or 'all', got {split!r}")
        info = _read_info(os.path.expanduser(os.fspath(path)))
        self._every = held_out_every(eval_fraction)
        name, self._part = _part(list(info.splits), split)
        files = info.splits[name].file_instructions
        self._files = [(os.fspath(file.filename), file.examples_in_shard) for file in files]
        self._starts = np.concatenate([[0], np.cumsum([records for _, records in self._files], dtype=np.int64)])
        self._size = split_size(int(self._starts[-1]), self._part, self._every)
        self._features = _needed(info.features, path)
        self._named = bool(classes)
        self.class_names = _class_names(self._features, classes)
        self._name = f"{info.full_name} {name} {[records for _, records in self._files]}"
        self.traffic = Traffic()
        self._records = ArrayRecords(self.traffic)

    @property
    def fingerprint(self) -> str:
        """Digest of what determines example i: the build's name and version, the split and its shards' lengths."""
        which = self._part if self._part == "all" else f"{self._part}/{self._every}"
        contents = f"{self._name} {which} {self.class_names}"
        return hashlib.blake2b(contents.encode(), digest_size=16).hexdigest()

    @property
    def has_captions(self) -> bool:
        """Whether classes are called by words, and captions made of these."""
        return self._named

    def __len__(self) -> int:
        return self._size

    def read(self, indices: np.ndarray) -> list[Example]:
        """Examples with the encoded bytes of their pictures.

        Raises:
          BadImage: a record is damaged; ask for them one by one to get the others.
          OSError: a file cannot be read.
          ValueError: a file has another number of records than the build says.
        """
        examples: list[Example | None] = [None] * len(indices)
        for file, places, rows in by_shard(split_indices(indices, self._part, self._every), self._starts):
            path, records = self._files[file]
            found = self._records.read(path, rows.tolist(), records)
            for place, row, data in zip(places.tolist(), rows.tolist(), found, strict=True):
                examples[place] = self._example(data, f"{path}/{row}")
        return examples

    def _example(self, data: bytes | BadImage, origin: str) -> Example:
        if isinstance(data, BadImage):
            raise data
        try:
            found = self._features.deserialize_example_np(data, decoders={"image": tfds.decode.SkipDecoding()})
        except (DecodeError, ValueError, KeyError) as error:
            raise BadImage("damaged-record", str(error), origin) from error
        label = found.get("label", -1)
        label = int(label) if label >= 0 else None  # TFDS has −1 where labels are secret
        caption = f"a photo of a {self.class_names[label]}" if self._named and label is not None else None
        return Example(bytes(found["image"]), caption, label, origin)

    def close(self) -> None:
        """Closes the files; reading goes on opening them again."""
        self._records.close()


def _read_info(path: str) -> Any:
    try:
        info = tfds.builder_from_directory(path).info
    except (tfds.core.dataset_info.DatasetInfoFileError, FileNotFoundError) as error:
        raise FileNotFoundError(f"there is no TensorFlow dataset in {path}: {_BUILD}") from error
    if info.file_format is None or info.file_format.value != "array_record":
        written = info.file_format.value if info.file_format else "an unknown format"
        raise ValueError(f"{path} was written as {written}, which has no random access: {_BUILD}")
    return info


def _part(built: list[str], split: str) -> tuple[str, Split]:
    """(TFDS's name of the split to read, which part of it)."""
    held_out = next((name for name in _HELD_OUT if name in built), None)
    name = held_out if split == "eval" and held_out else "train"
    if name not in built:
        raise ValueError(f"the split {split!r} needs {name!r}; this TensorFlow dataset has {built}")
    return name, "all" if held_out or split == "all" else split


def _needed(features: Any, path: str | os.PathLike) -> tfds.features.FeaturesDict:
    """Of all features those that we read."""
    if "image" not in features or not isinstance(features["image"], tfds.features.Image):
        raise ValueError(f"{path} has no feature 'image' that is a picture; it has {list(features)}")
    needed = {"image": features["image"]}
    if "label" in features and isinstance(features["label"], tfds.features.ClassLabel):
        needed["label"] = features["label"]
    return tfds.features.FeaturesDict(needed)


def _class_names(features: tfds.features.FeaturesDict, classes: str) -> tuple[str, ...]:
    names = tuple(features["label"].names) if "label" in features else ()
    if not classes:
        return names
    given = read_prompts(classes).classes
    if len(given) != len(names):
        raise ValueError(f"{classes} names {len(given)} classes, and the dataset has {len(names)} labels")
    return given

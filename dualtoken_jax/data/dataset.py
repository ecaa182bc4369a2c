"""Which pictures a run reads: the data settings, and the sources that they name."""

import dataclasses
from typing import Literal

from dualtoken_jax.data.images import Decoding
from dualtoken_jax.data.mixture import Mixture
from dualtoken_jax.data.order import Order
from dualtoken_jax.data.reading import Reading
from dualtoken_jax.data.scenes import Scenes, ScenesConfig
from dualtoken_jax.data.shards import Shards
from dualtoken_jax.data.sources import Folder, Source
from dualtoken_jax.data.tfds_records import TfdsRecords

# Rendered scenes; a folder of JPEG/PNG/WebP files; a dataset that `dualtoken_jax.data.prepare` has indexed or converted
# (tar, ArrayRecord or Parquet shards); a TFDS build with file_format=array_record.
Kind = Literal["scenes", "folder", "shards", "tfds"]
Split = Literal["train", "eval", "all"]


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """One more source to train on."""

    source: Kind
    path: str
    weight: int = 1  # examples in a row of the mixture, as data.weight


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where pictures come from."""

    source: Kind = "scenes"
    # Of the folder (sub-folders are labels, .txt files beside the images are captions), of the prepared dataset's
    # manifest.json (a URL too), or of the TFDS build, such as imagenet2012/5.1.0.
    path: str = ""
    eval_path: str = ""  # folder or prepared dataset to evaluate on; empty holds a part of `path` out (TFDS: its own)
    classes: str = ""  # JSON file with the names of a TFDS build's classes; empty takes its own
    # Sources to train on beside this one. Of every sum of weights examples in a row, each gives its weight.
    mixture: tuple[MixtureConfig, ...] = ()
    weight: int = 1  # of `path` in the mixture
    augment: bool = False  # random resized crops of 90–100 % of the area; otherwise the centre
    eval_fraction: float = 0.1  # share of `path` that is held out
    eval_examples: int = 2048  # held-out examples that an evaluation reads, at most
    # Blocks of so many neighbours are read at once and shuffled among `shuffle_window` blocks, which object stores
    # like; every host reads all of a window and keeps it. 1 shuffles the whole epoch and reads what it needs.
    shuffle_block: int = 1
    shuffle_window: int = 64
    # Of training: torchvision's pixels, or faster ones that differ by about one in 255 (images.py)
    decoding: Decoding = "exact"
    reading: Reading = Reading()
    scenes: ScenesConfig = ScenesConfig()


def open_source(config: DataConfig, seed: int, split: Split) -> Source:
    """The configured source, of a mixture the first; "all" is not for scenes.

    Raises FileNotFoundError or ValueError for one that is missing, damaged or holds no pictures.
    """
    held_out = split == "eval" and config.eval_path
    path, split = (config.eval_path, "all") if held_out else (config.path, split)
    if split == "train" and config.eval_path:
        split = "all"
    return _open(config.source, path, config, seed, split)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a run trains on, and in which order."""

    source: Mixture
    order: Order

    def state(self, position: int) -> dict:
        """What a checkpoint keeps of the data: the next position, and what it counts in."""
        return {"position": position, **self._fingerprint}

    def position(self, state: dict) -> int:
        """The position in `state`. ValueError, with the difference, where it counts in other examples than these."""
        mine = self._fingerprint
        changed = [f"{name}: {state.get(name)!r} → {mine[name]!r}" for name in mine if state.get(name) != mine[name]]
        if changed:
            raise ValueError(
                "the checkpoint was trained on other data, or in another order (there → here):\n  "
                + "\n  ".join(changed)
                + "\nName the data that it was trained on to resume, or begin a run in another --workdir; init_path "
                "takes the weights over"
            )
        return state["position"]

    @property
    def _fingerprint(self) -> dict:
        return self.order.fingerprint | {"sources": self.source.fingerprints}


def open_training(config: DataConfig, seed: int) -> TrainingData:
    """The configured sources and their order. Raises as `open_source`."""
    first = open_source(config, seed, "train")
    source = Mixture([first, *(_open(one.source, one.path, config, seed, "train") for one in config.mixture)])
    weights = (config.weight, *(one.weight for one in config.mixture))
    return TrainingData(source, Order(source.sizes, weights, seed, config.shuffle_block, config.shuffle_window))


def _open(kind: Kind, path: str, config: DataConfig, seed: int, split: Split) -> Source:
    if kind == "folder":
        return Folder(path, split, config.eval_fraction)
    if kind == "shards":
        return Shards(path, split, config.eval_fraction, block=config.shuffle_block)
    if kind == "tfds":
        return TfdsRecords(path, split, config.eval_fraction, config.classes)
    return Scenes(config.scenes, seed, split)

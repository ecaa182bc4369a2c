"""Which pictures a run reads: the data settings, and the source that they name."""

import dataclasses
from typing import Literal

from dualtoken_jax.data.scenes import Scenes, ScenesConfig
from dualtoken_jax.data.sources import Folder, Source


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where pictures come from."""

    source: Literal["scenes", "folder"] = "scenes"  # rendered scenes, or a folder of JPEG/PNG/WebP files
    path: str = ""  # of the folder; sub-folders are labels, .txt files beside the images are captions
    augment: bool = False  # random resized crops of 90–100 % of the area; otherwise the centre
    eval_fraction: float = 0.1  # share of a folder's files that is held out
    eval_examples: int = 2048  # held-out examples that an evaluation reads, at most
    threads: int = 2  # that read batches ahead
    scenes: ScenesConfig = ScenesConfig()


def open_source(config: DataConfig, seed: int, split: Literal["train", "eval", "all"]) -> Source:
    """The configured source; "all" is for folders only.

    Raises FileNotFoundError or ValueError for a folder that is missing or holds no pictures.
    """
    if config.source == "folder":
        return Folder(config.path, split, config.eval_fraction)
    return Scenes(config.scenes, seed, split)

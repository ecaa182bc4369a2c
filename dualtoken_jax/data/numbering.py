"""Which example of a dataset the i-th of a split is, and in which shard it lies. Index arithmetic only, no tables."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

Split = Literal["train", "eval", "all"]


def held_out_every(eval_fraction: float) -> int:
    """k, where every k-th example is held out. ValueError for a share above 1/2, or none."""
    if not 0 < eval_fraction <= 0.5:
        raise ValueError(f"eval_fraction must lie above 0 and be at most 1/2 for shards, got {eval_fraction}")
    return round(1 / eval_fraction)


def split_size(examples: int, split: Split, every: int) -> int:
    """How many of `examples` a split has when every `every`-th is held out."""
    return {"all": examples, "eval": examples // every, "train": examples - examples // every}[split]


def split_indices(indices: np.ndarray, split: Split, every: int) -> np.ndarray:
    """int64 [n]: which examples of the whole those at `indices` [n] of a split are."""
    indices = np.asarray(indices, np.int64)
    if split == "all":
        return indices
    return indices * every + every - 1 if split == "eval" else indices + indices // (every - 1)


def by_shard(examples: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(shard, places [m] in `examples`, their rows [m] in the shard), for every shard that has some of `examples` [n].

    Args:
      starts: int64 [shards + 1], number of each shard's first example, then of all examples.
    """
    shards = np.searchsorted(starts, examples, side="right") - 1
    for shard in np.unique(shards).tolist():
        (places,) = np.nonzero(shards == shard)
        yield shard, places, examples[places] - starts[shard]

"""One pass over a source for the commands: every picture, or what is wrong with it, in order and read ahead."""

from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from dualtoken_jax.data.reader import Reader
from dualtoken_jax.data.sources import Example, Source


class Picture(NamedTuple):
    """One example of a source; `example.image` is uint8 [R, R, 3]. Of `example` and `problem` one is None."""

    index: int
    example: Example | None
    problem: str | None  # the file and what is wrong with it


def picture_groups(
    source: Source, resolution: int, group: int, limit: int | None = None, threads: int = 2
) -> Iterator[list[Picture]]:
    """Examples 0 … min(limit, len) − 1, centre-cropped as in evaluation, `group` at a time.

    A picture that cannot be used is handed out with its problem, for the caller to report: nothing is replaced.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for the whole source, got {limit}")
    count = len(source) if limit is None else min(limit, len(source))
    reader = Reader(source, lambda captions: np.zeros((len(captions), 1)), resolution, "exact")

    def read(number: int) -> list[Picture]:
        indices = np.arange(number * group, min((number + 1) * group, count))
        return [
            Picture(int(index), example, problem and f"{problem[0]}: {problem[1]}")
            for index, (example, problem) in zip(indices, reader.examples(indices), strict=True)
        ]

    # Grain counts the buffer in elements, and ours are whole groups.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(grain.MapDataset.range(-(-count // group)).map(read).to_iter_dataset(options))

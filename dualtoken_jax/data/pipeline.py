"""Positions → host batches, read ahead by Grain's threads. The whole data state is one integer, the next position."""

import sys
from collections.abc import Iterator

import grain
import numpy as np

from dualtoken_jax.data import order
from dualtoken_jax.data.bad_images import BadImageCounter
from dualtoken_jax.data.reader import Batch, Encode, Reader
from dualtoken_jax.data.sources import Source

SUBSTITUTES = 5  # tried in turn for a bad training image; at 5 % bad files all of them fail 3 times in 10 million


class Batches(Iterator[Batch]):
    """Iterates over host batches; `bad` counts the images that had to be replaced (see BadImageCounter)."""

    def __init__(self, of_batches: "_TrainBatches | _EvalBatches", bad: BadImageCounter, threads: int) -> None:
        self.bad = bad
        # Grain counts the buffer in elements, and ours are whole batches: its default of 500 would fill the memory.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        self._iterator = iter(grain.MapDataset.source(of_batches).to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        """Stops the reading threads."""
        self._iterator.close()


def batches(
    source: Source,
    encode: Encode,
    *,
    resolution: int,
    batch_size: int,
    seed: int,
    start: int,
    augment: bool,
    threads: int,
    process_index: int,
    process_count: int,
) -> Batches:
    """Endless training batches. Row r of the global batch at position g is example g + r on every topology.

    A bad image is replaced, one for one, by another example chosen by its index alone; where SUBSTITUTES of those are
    bad too, by a zero image of weight 0.

    Args:
      source: where the examples are.
      encode: captions to token ids, int32 [n, T].
      resolution: R, pixels.
      batch_size: rows of the **global** batch, B.
      seed: of the order and of the crops.
      start: position of the first row, that is the number of examples trained on before.
      augment: random resized crops; otherwise centre crops.
      threads: batches read at once; 0 reads in the caller's thread, when asked.
      process_index, process_count: this host gets rows [index · B/count, (index + 1) · B/count).

    Returns:
      An iterator over {'image': uint8 [b, R, R, 3], 'text': int32 [b, T] (zeros without a caption), 'label': int32 [b]
      (-1 without one), 'weight': float32 [b]} with b = B/count. Its next() raises TooManyBadImages.

    Raises:
      ValueError: the source is empty, B is not divisible by the number of hosts, or `start` is negative.
    """
    if start < 0:
        raise ValueError(f"start is a position and counts from 0, got {start}")
    rows = _host_rows(source, batch_size, process_index, process_count)
    reader = Reader(source, encode, resolution, substitutes=SUBSTITUTES)
    return Batches(_TrainBatches(reader, rows + start, batch_size, seed, augment), reader.bad, threads)


def eval_batches(
    source: Source,
    encode: Encode,
    *,
    resolution: int,
    batch_size: int,
    limit: int | None,
    process_index: int,
    process_count: int,
    threads: int = 2,
) -> Batches:
    """One pass over examples 0 … min(limit, len) - 1 in order, centre-cropped; arguments and batches as in `batches`.

    The last batch is filled up with rows of weight 0, so that shapes never change and every host sees as many batches.
    A bad image gets weight 0 as well: a substitute would count some other example twice.

    Raises:
      ValueError: as `batches`, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for the whole source, got {limit}")
    rows = _host_rows(source, batch_size, process_index, process_count)
    count = len(source) if limit is None else min(limit, len(source))
    reader = Reader(source, encode, resolution, substitutes=0)
    return Batches(_EvalBatches(reader, rows, batch_size, count), reader.bad, threads)


def _host_rows(source: Source, batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """int64 [b]: the rows of the global batch that this host reads."""
    if len(source) == 0:
        raise ValueError("the source holds no examples; check its path and split")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} is global and must be a positive multiple of the number of hosts, {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} must lie in [0, process_count = {process_count})")
    rows = batch_size // process_count
    return np.arange(process_index * rows, (process_index + 1) * rows, dtype=np.int64)


class _TrainBatches:
    """What Grain reads at random: item i is the batch at position start + i · batch_size."""

    def __init__(self, reader: Reader, first_positions: np.ndarray, batch_size: int, seed: int, augment: bool) -> None:
        self._reader, self._first_positions = reader, first_positions
        self._batch_size, self._seed, self._augment = batch_size, seed, augment

    def __len__(self) -> int:
        return (sys.maxsize - int(self._first_positions[-1])) // self._batch_size  # as many as int64 positions allow

    def __getitem__(self, number: int) -> Batch:
        positions = self._first_positions + number * self._batch_size
        _, indices = order.epoch_and_index(positions, self._reader.size, self._seed)
        rngs = [None] * len(positions)
        if self._augment:
            rngs = [np.random.default_rng(key) for key in order.augmentation_seed(positions, self._seed)]
        return self._reader.batch(indices, rngs)


class _EvalBatches:
    """What Grain reads at random: item i is examples i · batch_size … in order, short of the last one's padding."""

    def __init__(self, reader: Reader, rows: np.ndarray, batch_size: int, count: int) -> None:
        self._reader, self._rows, self._batch_size, self._count = reader, rows, batch_size, count

    def __len__(self) -> int:
        return (self._count + self._batch_size - 1) // self._batch_size

    def __getitem__(self, number: int) -> Batch:
        indices = self._rows + number * self._batch_size
        return self._reader.batch(indices[indices < self._count], [None] * len(indices))

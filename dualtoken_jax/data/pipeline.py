"""Positions → host batches, read ahead by Grain. The whole data state is one integer, the next position."""

import sys
from collections.abc import Iterator

import grain
import numpy as np

from dualtoken_jax.data.bad_images import BadImageCounter
from dualtoken_jax.data.images import Decoding
from dualtoken_jax.data.order import Order, augmentation_seed
from dualtoken_jax.data.reader import Batch, Encode, Problem, Reader
from dualtoken_jax.data.reading import ReadAhead, Reading
from dualtoken_jax.data.sources import Source


class Batches(Iterator[Batch]):
    """Iterates over host batches.

    `bad` counts the images that had to be replaced; whoever iterates asks it whether there were too many to go on, at a
    moment that suits.
    """

    def __init__(self, of_batches: "_TrainBatches | _EvalBatches", reading: Reading) -> None:
        """Starts to read ahead."""
        self.bad = BadImageCounter()
        self._read_ahead = ReadAhead(grain.MapDataset.source(of_batches), reading)

    def __next__(self) -> Batch:
        batch, problems = next(self._read_ahead)
        self.bad.record(problems)
        return batch

    def close(self) -> None:
        """Stops the threads and worker processes."""
        self._read_ahead.close()


def batches(
    source: Source,
    encode: Encode,
    *,
    order: Order,
    resolution: int,
    batch_size: int,
    start: int,
    augment: bool,
    decoding: Decoding,
    reading: Reading,
    rows: np.ndarray,
) -> Batches:
    """Endless training batches. Row r of the global batch at position g is example g + r on every topology.

    A bad image is replaced, one for one, by another example of its source, chosen by its number alone; where
    reader.SUBSTITUTES of those are bad too, by a zero image of weight 0.

    Args:
      source: where the examples are.
      encode: captions to token ids, int32 [n, T].
      order: which of them stands at which position; its seed is the crops' too.
      resolution: R, pixels.
      batch_size: rows of the **global** batch, B.
      start: position of the first row, that is the number of examples trained on before.
      augment: random resized crops; otherwise centre crops.
      decoding: "exact" or "fast", see images.py.
      reading: by how many threads and processes; no number of them changes a batch.
      rows: int64 [b], which rows of the global batch this host gets (sharding.host_rows), ascending.

    Returns:
      An iterator over {'image': uint8 [b, R, R, 3], 'text': int32 [b, T] (zeros without a caption), 'label': int32 [b]
      (-1 without one), 'weight': float32 [b]}. Its next() raises what ReadAhead raises.

    Raises:
      ValueError: rows outside the global batch, or `start` is negative.
    """
    if start < 0:
        raise ValueError(f"start is a position and counts from 0, got {start}")
    _check_rows(rows, batch_size)
    reader = Reader(source, encode, resolution, decoding, order.substitute)
    return Batches(_TrainBatches(reader, order, rows + start, batch_size, augment), reading)


def eval_batches(
    source: Source,
    encode: Encode,
    *,
    resolution: int,
    batch_size: int,
    limit: int | None,
    decoding: Decoding,
    reading: Reading,
    rows: np.ndarray,
) -> Batches:
    """One pass over examples 0 … min(limit, len) - 1 in order, centre-cropped; arguments and batches as in `batches`.

    The last batch is filled up with rows of weight 0, so that shapes never change and every host sees as many batches.
    A bad image gets weight 0 as well: a substitute would count some other example twice.

    Raises:
      ValueError: as `batches`, the source is empty, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for the whole source, got {limit}")
    if len(source) == 0:
        raise ValueError("the source holds no examples; check its path and split")
    _check_rows(rows, batch_size)
    count = len(source) if limit is None else min(limit, len(source))
    return Batches(_EvalBatches(Reader(source, encode, resolution, decoding), rows, batch_size, count), reading)


def _check_rows(rows: np.ndarray, batch_size: int) -> None:
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= batch_size or (np.diff(rows) <= 0).any():
        raise ValueError(f"rows must ascend within the global batch of {batch_size} rows, got {rows.tolist()}")


Read = tuple[Batch, tuple[Problem | None, ...]]  # problems travel with their batch: workers have no counter to share


class _TrainBatches:
    """What Grain reads at random: item i is the batch at position start + i · batch_size."""

    def __init__(
        self, reader: Reader, order: Order, first_positions: np.ndarray, batch_size: int, augment: bool
    ) -> None:
        self._reader, self._order, self._first_positions = reader, order, first_positions
        self._batch_size, self._augment = batch_size, augment

    def __len__(self) -> int:
        return (sys.maxsize - int(self._first_positions[-1])) // self._batch_size  # as many as int64 positions allow

    def __getitem__(self, number: int) -> Read:
        positions = self._first_positions + number * self._batch_size
        rngs = [None] * len(positions)
        if self._augment:
            rngs = [np.random.default_rng(key) for key in augmentation_seed(positions, self._order.seed)]
        return self._reader.batch(self._order.examples(positions), rngs)


class _EvalBatches:
    """What Grain reads at random: item i is examples i · batch_size … in order, short of the last one's padding."""

    def __init__(self, reader: Reader, rows: np.ndarray, batch_size: int, count: int) -> None:
        self._reader, self._rows, self._batch_size, self._count = reader, rows, batch_size, count

    def __len__(self) -> int:
        return (self._count + self._batch_size - 1) // self._batch_size

    def __getitem__(self, number: int) -> Read:
        indices = self._rows + number * self._batch_size
        return self._reader.batch(indices[indices < self._count], [None] * len(indices))

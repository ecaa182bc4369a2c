"""Which example stands at position n. Index arithmetic only: no table, no state, nothing to checkpoint but n.

Every epoch is a keyed permutation of the dataset, computed per element by a Feistel network (Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002, section 5). The domain is a rectangle of about √size × √size, so that it
exceeds the dataset by √size at most and cycle-walking rarely takes a second step.
"""

import dataclasses
import math

import numpy as np

_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Separate streams, so that one seed's permutations, crops and substitutes have nothing to do with each other.
_PERMUTATION, _AUGMENTATION, _SUBSTITUTE = np.uint64(1), np.uint64(2), np.uint64(3)


VERSION = 1  # of the arithmetic below: another one would continue a run with other examples
_MOST_WEIGHT = 2**31  # of a mixture's weights together, so that products with them stay within 63 bits


@dataclasses.dataclass(frozen=True)
class Order:
    """The example at each position of a run over one source, or over a mixture of several.

    Examples are numbered through: those of the second source follow those of the first. Sources keep epochs of their
    own; how far each has come follows from the one position.
    """

    sizes: tuple[int, ...]  # examples of each source
    weights: tuple[int, ...]  # of every sum(weights) positions in a row, weights[i] belong to source i
    seed: int
    block: int = 1  # consecutive examples that are visited within one window; 1 permutes the whole epoch freely
    window: int = 1  # blocks shuffled together

    def __post_init__(self):
        if len(self.sizes) != len(self.weights) or min(self.sizes, default=0) < 1:
            raise ValueError(
                f"sources of {self.sizes} examples and weights {self.weights}: each needs at least 1 example"
            )
        if min(self.weights) < 1 or sum(self.weights) >= _MOST_WEIGHT:
            raise ValueError(f"weights {self.weights} must be integers from 1 on, with a sum below {_MOST_WEIGHT}")
        if min(self.block, self.window) < 1:
            raise ValueError(f"block {self.block} and window {self.window} must be at least 1")

    def examples(self, position: np.ndarray) -> np.ndarray:
        """int64: the number of the example at each position (int64, any shape)."""
        source, place = mixture(position, self.weights)
        found, first = np.zeros_like(place), 0
        for number, size in enumerate(self.sizes):
            here = source == number
            index = epoch_and_index(place[here], size, self.seed, number, self.block, self.window)[1]
            found[here], first = first + index, first + size
        return found

    def substitute(self, example: int, attempt: int) -> int:
        """Another example of the same source, for attempt 1, 2, …; see `substitute_index`."""
        first = 0
        for size in self.sizes:
            if example < first + size:
                return first + substitute_index(example - first, attempt, size)
            first += size
        raise IndexError(f"example {example} of {first}")

    @property
    def fingerprint(self) -> dict[str, int | list[int]]:
        """What, beside the sources themselves, decides which example stands where; fit for JSON."""
        fields = dataclasses.asdict(self) | {"sizes": list(self.sizes), "weights": list(self.weights)}
        if self.block == 1:
            del fields["window"]  # it changes nothing then
        return {"order version": VERSION, **fields}


def mixture(position: np.ndarray, weights: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(source, position in that source), int64 and shaped as `position`; sources are interleaved as evenly as can be.

    Of positions 0 … n − 1, floor or ceil of n · weights[i] / sum(weights) belong to source i when there are two; each
    further source shares out what the ones before it leave.
    """
    place = np.array(position, np.int64)
    if place.size and place.min() < 0:
        raise ValueError(f"positions count from 0, got {place.min()}")
    source, left = np.full_like(place, len(weights) - 1), sum(weights)
    undecided = np.ones_like(place, bool)
    for number, weight in enumerate(weights[:-1]):
        before, after = _share(place, weight, left), _share(place + 1, weight, left)
        here = undecided & (after > before)
        source[here] = number
        undecided &= ~here
        place = np.where(here, before, np.where(undecided, place - before, place))
        left -= weight
    return source, place


def _share(count: np.ndarray, weight: int, total: int) -> np.ndarray:
    """floor(count · weight / total) without the product."""
    periods, rest = np.divmod(count, total)
    return periods * weight + rest * weight // total


def epoch_and_index(
    position: np.ndarray, size: int, seed: int, source: int = 0, block: int = 1, window: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The epoch and the example at each position; over every epoch each example comes up exactly once.

    Args:
      position: int64, any shape; 0 is the first example of the first epoch.
      size: examples in the dataset.
      seed: any integer; taken modulo 2⁶⁴.
      source: number of the source in a mixture; others go through their examples in another order.
      block, window: with a block above 1 the order has two levels: blocks of so many consecutive examples are permuted,
        and the examples of each `window` blocks in a row, so that storage can be read in whole blocks.

    Returns:
      (epoch, index): int64, shaped as `position`, index in [0, size).

    Raises:
      ValueError: size below 1, or a negative position.
    """
    position = np.asarray(position, np.int64)
    if size < 1:
        raise ValueError(f"cannot order a dataset of {size} examples; the source must hold at least 1")
    if position.size and position.min() < 0:
        raise ValueError(f"positions count from 0, got {position.min()}")
    epoch, offset = np.divmod(position.reshape(-1), size)
    # The epoch is hashed into a hashed seed: with seed + epoch, seed 1 would repeat seed 0's order one epoch late.
    stream = _stream(seed, _PERMUTATION) ^ np.uint64(source << 32)
    key = _mix(stream + epoch.astype(np.uint64) * _GOLDEN)
    index = (
        _permute(offset.astype(np.uint64), key, size) if block == 1 else _two_levels(offset, key, size, block, window)
    )
    return epoch.reshape(position.shape), index.astype(np.int64).reshape(position.shape)


def _two_levels(offset: np.ndarray, key: np.ndarray, size: int, block: int, window: int) -> np.ndarray:
    """Permutes within windows over permuted blocks. A last block that is shorter stays last, among the last window."""
    number, within = np.divmod(offset, block * window)
    begin = number * (block * window)
    length = np.minimum(block * window, size - begin)  # two values at most: the last window may be shorter
    window_key = _mix(key ^ _mix(number.astype(np.uint64)))
    inner = np.zeros_like(offset)
    for one in np.unique(length):
        chosen = length == one
        inner[chosen] = _permute(within[chosen].astype(np.uint64), window_key[chosen], int(one)).astype(np.int64)
    slot, place = np.divmod(begin + inner, block)
    whole = slot < size // block
    if whole.any():
        slot[whole] = _permute(slot[whole].astype(np.uint64), key[whole], size // block).astype(np.int64)
    return slot * block + place


def augmentation_seed(position: np.ndarray, seed: int) -> np.ndarray:
    """A uint64 seed for the random crop at each position (any shape), independent of the order of examples."""
    position = np.asarray(position, np.int64)
    return _mix(_stream(seed, _AUGMENTATION) + position.reshape(-1).astype(np.uint64) * _GOLDEN).reshape(position.shape)


def substitute_index(index: int, attempt: int, size: int) -> int:
    """The example read when `index` turns out bad, for attempt 1, 2, …; differs from `index` if size > 1.

    Scattered over the dataset rather than the next one, because bad files come in runs (an interrupted copy).
    """
    if size == 1:
        return 0
    key = _stream(attempt, _SUBSTITUTE) + np.asarray([index], np.uint64) * _GOLDEN
    return (index + 1 + int(_mix(key)[0]) % (size - 1)) % size


def _permute(offset: np.ndarray, key: np.ndarray, size: int) -> np.ndarray:
    index = _feistel(offset, key, size)
    while (outside := index >= size).any():  # walk the cycle until it is back inside: still a bijection
        index[outside] = _feistel(index[outside], key[outside], size)
    return index


def _feistel(value: np.ndarray, key: np.ndarray, size: int) -> np.ndarray:
    """A bijection of [0, rows · columns), the smallest near-square rectangle that holds `size`."""
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    row, column = np.divmod(value, np.uint64(columns))
    for number in range(1, _ROUNDS + 1):
        round_key = key + np.uint64(number * int(_GOLDEN) % 2**64)  # in Python: numpy warns when a scalar wraps
        if number % 2:
            row = (row + _mix(round_key ^ _mix(column)) % np.uint64(rows)) % np.uint64(rows)
        else:
            column = (column + _mix(round_key ^ _mix(row)) % np.uint64(columns)) % np.uint64(columns)
    return row * np.uint64(columns) + column


def _stream(seed: int, stream: np.uint64) -> np.ndarray:
    return _mix(_mix(np.asarray([int(seed) % 2**64], np.uint64)) ^ stream)


def _mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al., 2014). Takes arrays, not scalars: numpy warns when a scalar wraps."""
    value = (value + _GOLDEN).astype(np.uint64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))

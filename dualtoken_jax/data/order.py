"""Which example stands at position n. Index arithmetic only: no table, no state, nothing to checkpoint but n.

Every epoch is a keyed permutation of the dataset, computed per element by a Feistel network (Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002, section 5). The domain is a rectangle of about √size × √size, so that it
exceeds the dataset by √size at most and cycle-walking rarely takes a second step.
"""

import math

import numpy as np

_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Separate streams, so that one seed's permutations, crops and substitutes have nothing to do with each other.
_PERMUTATION, _AUGMENTATION, _SUBSTITUTE = np.uint64(1), np.uint64(2), np.uint64(3)


def epoch_and_index(position: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The epoch and the example at each position; over every epoch each example comes up exactly once.

    Args:
      position: int64, any shape; 0 is the first example of the first epoch.
      size: examples in the dataset.
      seed: any integer; taken modulo 2⁶⁴.

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
    key = _mix(_stream(seed, _PERMUTATION) + epoch.astype(np.uint64) * _GOLDEN)
    index = _permute(offset.astype(np.uint64), key, size)
    return epoch.reshape(position.shape), index.astype(np.int64).reshape(position.shape)


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

"""The order of examples: a permutation per epoch, a pure function of (position, size, seed)."""

import itertools

import numpy as np
import pytest

from dualtoken_jax.data import order

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 100, 255, 256, 257, 1000, 4097]


def epochs_of(size, seed, first, count):
    positions = np.arange(first * size, (first + count) * size)
    return order.epoch_and_index(positions, size, seed)[1].reshape(count, size)


@pytest.mark.parametrize("size", SIZES)
def test_every_epoch_visits_every_example_once(size):
    for first in (0, 12_345):
        for indices in epochs_of(size, seed=7, first=first, count=4):
            np.testing.assert_array_equal(np.sort(indices), np.arange(size))


def test_epoch_counts_from_zero_and_shape_is_kept():
    epoch, index = order.epoch_and_index(np.array([[0, 9], [10, 29]]), 10, seed=0)
    np.testing.assert_array_equal(epoch, [[0, 0], [1, 2]])
    assert index.shape == (2, 2) and index.dtype == np.int64


def test_an_example_depends_on_its_own_position_only():
    together = order.epoch_and_index(np.arange(5000), 1000, seed=3)[1]
    alone = [int(order.epoch_and_index(np.int64(position), 1000, seed=3)[1]) for position in range(0, 5000, 97)]
    np.testing.assert_array_equal(together[::97], alone)


def test_no_two_epochs_of_neighbouring_seeds_share_a_permutation():
    seen = [epochs_of(1000, seed, first=0, count=5) for seed in range(5)]
    for one, other in itertools.combinations(np.concatenate(seen), 2):
        assert (one == other).mean() < 0.02  # two random permutations agree at 1 place in 1000


def test_small_datasets_reach_every_permutation_about_equally():
    orders, counts = np.unique(epochs_of(3, seed=0, first=0, count=6000), axis=0, return_counts=True)
    assert len(orders) == 6
    assert np.abs(counts - 1000).max() < 150  # 5 standard deviations


def test_order_is_spread_evenly():
    """Where an example comes in one epoch says nothing of its neighbours, or of itself in the next epoch."""
    first, second = epochs_of(4000, seed=11, first=0, count=2).astype(float)
    for one, other in [(first, second), (first[:-1], first[1:]), (first, np.arange(4000))]:
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.08


def test_huge_datasets_and_positions_stay_exact():
    size = 3 * 10**12 + 1
    positions = np.array([0, size - 1, 10**18, 2**62])
    epoch, index = order.epoch_and_index(positions, size, seed=2**70 + 1)
    assert ((0 <= index) & (index < size)).all() and len(set(index.tolist())) == 4
    np.testing.assert_array_equal(epoch, positions // size)


def test_augmentation_seeds_differ_by_position_and_seed():
    seeds = np.stack([order.augmentation_seed(np.arange(1000), seed) for seed in (-1, 0, 1, 2)])
    assert np.unique(seeds).size == seeds.size
    assert int(order.augmentation_seed(np.int64(5), 1)) == int(seeds[2, 5])


def test_substitutes_are_fixed_other_examples():
    for size in (2, 3, 50):
        for index, attempt in itertools.product(range(size), range(1, 6)):
            found = order.substitute_index(index, attempt, size)
            assert 0 <= found < size and found != index
            assert found == order.substitute_index(index, attempt, size)
    assert len({order.substitute_index(4, attempt, 10_000) for attempt in range(1, 6)}) == 5
    assert order.substitute_index(0, 1, 1) == 0


def test_impossible_requests_are_named():
    with pytest.raises(ValueError, match="0 examples"):
        order.epoch_and_index(np.arange(3), 0, seed=0)
    with pytest.raises(ValueError, match="-2"):
        order.epoch_and_index(np.array([1, -2]), 5, seed=0)

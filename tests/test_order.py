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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block, window", [(2, 1), (4, 3), (16, 4), (1000, 2)])
def test_two_levels_visit_every_example_once_and_keep_blocks_together(size, block, window):
    for epoch in (0, 7):
        index = order.epoch_and_index(np.arange(epoch * size, (epoch + 1) * size), size, 5, 0, block, window)[1]
        np.testing.assert_array_equal(np.sort(index), np.arange(size))
        for first in range(0, size, block * window):
            assert len(np.unique(index[first : first + block * window] // block)) <= window


def test_two_levels_still_shuffle():
    first, second = (
        order.epoch_and_index(np.arange(start, start + 10_000), 10_000, 1, 0, 16, 32)[1].astype(float)
        for start in (0, 10_000)
    )
    for one, other in [(first, second), (first[:-1], first[1:]), (first, np.arange(10_000))]:
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
    assert (np.diff(first) == 1).mean() < 0.01


@pytest.mark.parametrize("weights", [(1,), (3, 1), (1, 1, 1), (5, 2, 9, 1), (1, 10_000_000, 51_281_167)])
def test_mixtures_keep_their_ratios_everywhere_and_skip_nothing(weights):
    positions = np.arange(20_000) + 10**15
    source, place = order.mixture(positions, weights)
    for number, weight in enumerate(weights):
        mine = place[source == number]
        np.testing.assert_array_equal(mine, mine[0] + np.arange(len(mine)) if len(mine) else mine)
        for window in (1, 16, 4096, 20_000):
            share = (source[:window] == number).sum() - window * weight / sum(weights)
            assert abs(share) <= len(weights)
    period = sum(weights)
    if period < 20_000:
        np.testing.assert_array_equal(np.bincount(order.mixture(np.arange(period), weights)[0]), weights)


def test_every_source_of_a_mixture_has_epochs_of_its_own():
    one = order.Order((10, 4), (3, 1), seed=2)
    examples = one.examples(np.arange(40))
    assert ((0 <= examples) & (examples < 14)).all()
    small, large = examples[examples >= 10], examples[examples < 10]
    for epoch in small[:8].reshape(2, 4):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10, 14))
    for epoch in large.reshape(3, 10):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    twins = order.Order((50, 50), (1, 1), seed=2).examples(np.arange(100))
    first, second = twins[twins < 50], twins[twins >= 50] - 50
    assert (first == second).mean() < 0.2  # sources of equal size do not move in step


def test_a_substitute_is_another_example_of_the_same_source():
    one = order.Order((5, 1, 7), (1, 1, 1), seed=0)
    for example in range(13):
        bounds = next((low, high) for low, high in ((0, 5), (5, 6), (6, 13)) if low <= example < high)
        found = {one.substitute(example, attempt) for attempt in range(1, 6)}
        assert all(bounds[0] <= other < bounds[1] for other in found)
        assert example not in found or example == 5
    with pytest.raises(IndexError, match="13"):
        one.substitute(13, 1)


def test_impossible_orders_are_named():
    for sizes, weights, match in [
        ((3, 0), (1, 1), "at least 1 example"),
        ((3,), (1, 1), "weights"),
        ((3,), (0,), "from 1"),
    ]:
        with pytest.raises(ValueError, match=match):
            order.Order(sizes, weights, 0)
    with pytest.raises(ValueError, match="block 0"):
        order.Order((3,), (1,), 0, block=0)


def test_impossible_requests_are_named():
    with pytest.raises(ValueError, match="0 examples"):
        order.epoch_and_index(np.arange(3), 0, seed=0)
    with pytest.raises(ValueError, match="-2"):
        order.epoch_and_index(np.array([1, -2]), 5, seed=0)

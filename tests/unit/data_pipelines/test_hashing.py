"""Integer hashes and permutations: portable bit for bit, fair, bijective."""

import numpy as np
import pytest

from data_pipelines.hashing import coin, hash_u64, permute, uniform_int


def test_values_are_pinned():
    assert [int(value) for value in hash_u64(1, np.arange(3), -1)] == PINNED


def test_scalars_and_arrays_agree():
    assert int(hash_u64(5, 6, 7)) == int(hash_u64(5, np.array([1, 6]), 7)[1])


def test_order_of_parts_matters():
    assert int(hash_u64(1, 2)) != int(hash_u64(2, 1))
    assert int(hash_u64(0)) != int(hash_u64(0, 0))


def test_uniform_int_is_uniform():
    counts = np.bincount(uniform_int(hash_u64(9, np.arange(65_000)), 65), minlength=65)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_coin_is_fair():
    assert abs(coin(hash_u64(4, np.arange(40_000))).mean() - 0.5) < 0.01


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 64, 1000, 4097])
def test_permute_is_a_bijection(size):
    moved = permute(np.arange(size), size, hash_u64(3, size))
    assert sorted(moved) == list(range(size))


def test_permute_mixes_sizes_and_keys_in_one_call():
    index, sizes = np.array([3, 3, 90]), np.array([10, 10, 100])
    keys = hash_u64(np.array([1, 2, 3]))
    together = permute(index, sizes, keys)
    alone = [int(permute(index[i : i + 1], sizes[i], keys[i])[0]) for i in range(3)]
    assert together.tolist() == alone


def test_permutation_moves_neighbours_apart():
    moved = permute(np.arange(1000), 1000, hash_u64(11))
    assert abs(np.corrcoef(np.arange(1000), moved)[0, 1]) < 0.1


PINNED = [20227173336417315, 5724419992219295234, 18136596458380556759]

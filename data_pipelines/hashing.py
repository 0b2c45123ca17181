"""Keyed integer hashes: the only source of randomness of the data side.

Order, crop and flip of a sample are functions of small integers (seed, epoch, sample id, view),
so they are computed where they are needed and never remembered. Everything here is unsigned
64-bit integer arithmetic with wrap-around: the same bits on every machine and numpy version,
which `numpy.random` distributions and `numpy.exp/log` do not promise.

The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

U64Array: TypeAlias = NDArray[np.uint64]
IntLike: TypeAlias = int | np.integer | NDArray[np.integer]

_MASK64 = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_FEISTEL_ROUNDS = 6


def as_u64(value: IntLike) -> U64Array:
    """Any integer or integer array as uint64 (negative numbers wrap, two's complement)."""
    if isinstance(value, np.ndarray):
        return value.astype(np.uint64)
    return np.asarray(int(value) & _MASK64, dtype=np.uint64)


def _mix(value: U64Array) -> U64Array:
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def hash_u64(*parts: IntLike) -> U64Array:
    """One uint64 per element of the broadcast `parts`; order and number of parts matter."""
    with np.errstate(over="ignore"):
        state = np.asarray(_GAMMA)
        for part in parts:
            state = _mix((state + _GAMMA) ^ _mix(as_u64(part) + _GAMMA))
    return np.asarray(state, dtype=np.uint64)


def uniform_int(hashed: U64Array, count: IntLike) -> NDArray[np.int64]:
    """Hashes to integers in [0, count), 0 < count < 2**32, by the upper half of the bits."""
    with np.errstate(over="ignore"):
        scaled = ((hashed >> np.uint64(32)) * as_u64(count)) >> np.uint64(32)
    return np.asarray(scaled).astype(np.int64)


def coin(hashed: U64Array) -> NDArray[np.bool_]:
    """Hashes to fair booleans (the top bit)."""
    return np.asarray((hashed >> np.uint64(63)) == np.uint64(1))


def _bit_length(value: U64Array) -> U64Array:
    bits = np.zeros_like(value)
    rest = value.copy()
    for shift in (32, 16, 8, 4, 2, 1):
        large = rest >= np.uint64(1 << shift)
        bits[large] += np.uint64(shift)
        rest[large] >>= np.uint64(shift)
    return bits + rest


def _feistel(index: U64Array, half_bits: U64Array, round_keys: U64Array) -> U64Array:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = index >> half_bits, index & mask
    for key in round_keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half_bits) | right


def permute(index: NDArray[np.int64], size: IntLike, key: U64Array) -> NDArray[np.int64]:
    """Images of `index` under pseudo-random permutations of [0, size), chosen by `key`.

    A balanced Feistel network over the next power of four, walked until it lands inside the
    range. `index`, `size` and `key` broadcast; elements with the same size and key go through the
    same bijection. O(len(index)) time and memory whatever the size (below 2**62).
    """
    current, sizes, keys = (
        np.array(part) for part in np.broadcast_arrays(as_u64(index), as_u64(size), key)
    )
    current, sizes, keys = np.atleast_1d(current), np.atleast_1d(sizes), np.atleast_1d(keys)
    with np.errstate(over="ignore"):
        half_bits = np.maximum(
            (_bit_length(sizes - np.uint64(1)) + np.uint64(1)) >> np.uint64(1), 1
        )
        rounds = np.arange(1, _FEISTEL_ROUNDS + 1, dtype=np.uint64)[:, None]
        round_keys = _mix(keys[None, :] + rounds * _GAMMA)
        half_bits = half_bits.astype(np.uint64)
        walking = np.arange(len(current))
        while len(walking):
            moved = _feistel(current[walking], half_bits[walking], round_keys[:, walking])
            current[walking] = moved
            walking = walking[moved >= sizes[walking]]
    return current.astype(np.int64)

"""A pseudo-random permutation of 0 … n-1 that is computed, not stored.

C4 has 10⁸ windows; a shuffled index of them would cost a gigabyte per process. A Feistel network
is a bijection of [0, 4^h) whatever its round function is; values that land at n or above are sent
through again (cycle walking), which keeps it a bijection of [0, n). Since 4^h < 4n, a value takes
less than four passes on average. (Black and Rogaway, "Ciphers with arbitrary finite domains",
CT-RSA 2002.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
UInts = NDArray[np.uint64]


def permute(values: NDArray[np.int64], n: int, seed: int, epoch: NDArray[np.int64]) -> UInts:
    """Image of ``values`` (int64 [k], in 0 … n-1) under the permutation of (seed, epoch).

    ``epoch`` is int64 [k]: every value may belong to a permutation of its own. Returns uint64 [k].
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    key = _mix(_mix(np.full(len(values), seed % 2**64, np.uint64)) + epoch.astype(np.uint64))
    result = _feistel(values.astype(np.uint64), key, half)
    while (outside := result >= np.uint64(n)).any():
        result[outside] = _feistel(result[outside], key[outside], half)
    return result


def _feistel(values: UInts, key: UInts, half: int) -> UInts:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for number in range(ROUNDS):
        # Each round mixes with a key of its own: equal rounds would make the network an involution.
        round_key = _mix(key + np.uint64(number))
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << shift) | right


def _mix(x: UInts) -> UInts:
    """Finalizer of splitmix64 (Steele, Lea and Flood 2014); arithmetic is modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

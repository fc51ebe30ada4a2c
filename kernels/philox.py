"""Philox4x32-10, a counter-based random generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A draw is a pure function of its key and counter, so a token is drawn alike in any batch, phase or process.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEP = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint32)
_NUM_ROUNDS = 10
_WORD_BITS = np.uint64(32)


def philox4x32(counters: Words, keys: Words) -> Words:
    """Random words: `counters` ``[n, 4]`` and `keys` ``[n, 2]`` give ``[n, 4]``."""
    for _ in range(_NUM_ROUNDS):
        counters = _round(counters, keys)
        keys = keys + _KEY_STEP
    return counters


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in the open interval (0, 1) for each (seed, position): ``[n]`` float64.

    The key is the seed's low 64 bits, the counter the position; 52 random bits each.
    """
    keys = _words(seeds)
    counters = np.concatenate((_words(positions), np.zeros_like(keys)), axis=1)
    words = philox4x32(counters, keys).astype(np.uint64)
    bits = (words[:, 0] << np.uint64(20)) | (words[:, 1] >> np.uint64(12))
    uniform: NDArray[np.float64] = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return uniform


def _round(counters: Words, keys: Words) -> Words:
    first = counters[:, 0].astype(np.uint64) * _MULTIPLIERS[0]
    second = counters[:, 2].astype(np.uint64) * _MULTIPLIERS[1]
    mixed = (
        _high(second) ^ counters[:, 1] ^ keys[:, 0],
        second.astype(np.uint32),
        _high(first) ^ counters[:, 3] ^ keys[:, 1],
        first.astype(np.uint32),
    )
    return np.stack(mixed, axis=1)


def _high(products: NDArray[np.uint64]) -> Words:
    return (products >> _WORD_BITS).astype(np.uint32)


def _words(values: Sequence[int]) -> Words:
    """Low and high word of each value's low 64 bits: ``[n, 2]``."""
    halves = [(value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF) for value in values]
    return np.array(halves, dtype=np.uint32).reshape(-1, 2)

"""Content-defined chunks of token ids: cuts that depend on the tokens around them, and so survive insertions.

A gear hash (Xia et al. 2016, "FastCDC") over the last 64 tokens; a chunk ends where its highest bits are 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_WORD_BITS = 64
_WORD = (1 << _WORD_BITS) - 1


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """In tokens. A cut depends on the 64 tokens before it and on where the one before was; `lowest` is above 64."""

    lowest: int = 128
    mean: int = 256
    highest: int = 1024

    @property
    def num_zero_bits(self) -> int:
        """Beyond `lowest` each token ends the chunk with probability ``2**-num_zero_bits``."""
        return round(math.log2(self.mean - self.lowest))


def chunk_ends(token_ids: Sequence[int], sizes: ChunkSizes) -> list[int]:
    """Where chunks end; the last end is the number of tokens."""
    ends: list[int] = []
    start, rolled = 0, 0
    shift = _WORD_BITS - sizes.num_zero_bits
    for position, gear in enumerate(_gears(token_ids).tolist(), start=1):
        rolled = ((rolled << 1) + gear) & _WORD
        length = position - start
        if length >= sizes.highest or (length >= sizes.lowest and rolled >> shift == 0):
            ends.append(position)
            start = position
    return ends if start == len(token_ids) else [*ends, len(token_ids)]


def _gears(token_ids: Sequence[int]) -> npt.NDArray[np.uint64]:
    """A fixed random word for each token (the finaliser of SplitMix64, Steele et al. 2014)."""
    words = np.asarray(token_ids, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed

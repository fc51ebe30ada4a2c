"""What segment reuse leaves to be computed of a prompt, as far as the gateway knows. Pure."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReusedSpan:
    """Positions ``start .. end - 1``, of which an entry is known. `num_head_tokens` of it, and a share of `ratio`, are
    computed nevertheless."""

    start: int
    end: int
    num_head_tokens: int
    ratio: float

    def num_saved_tokens(self, num_cached: int) -> int:
        """Of what stands behind the first `num_cached` tokens, which are there exactly."""
        num_tokens = self.end - max(self.start, num_cached)
        return max(0, num_tokens - math.ceil(self.ratio * num_tokens) - self.num_head_tokens)


def num_saved_tokens(spans: Iterable[ReusedSpan], num_cached: int) -> int:
    """Of all spans together."""
    return sum(span.num_saved_tokens(num_cached) for span in spans)


class KnownEntries:
    """Keys of the segments whose entry was there when somebody last looked; the longest unnoted are forgotten."""

    def __init__(self, num_remembered: int) -> None:
        self._num_remembered = num_remembered
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def note(self, key: bytes, *, found: bool) -> None:
        """Somebody looked."""
        self._keys.pop(key, None)
        if found:
            self._keys[key] = None
            if len(self._keys) > self._num_remembered:
                self._keys.popitem(last=False)

    def clear(self) -> None:
        """The cache is gone."""
        self._keys.clear()

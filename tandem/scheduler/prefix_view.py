"""What the gateway believes to be in the cache of a replica: the content keys of published blocks.

It is a belief: what it says wrong costs a good place in the queue, never a wrong answer. Prefill asks memd itself.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol


class PrefixView(Protocol):
    """Keys by `tandem.kv.contents`. What changes returns the keys that came or went, so that forecasts follow."""

    def num_present(self, keys: Sequence[bytes]) -> int:
        """How many of the first of them are there."""
        ...

    def sent(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Blocks with these contents are there, or about to be computed for one sequence, in this order."""
        ...

    def clear(self) -> Sequence[bytes]:
        """The cache is gone."""
        ...


class SentPrefixes:
    """Takes what was sent to be kept as memd keeps it: the longest unused goes first, ends before beginnings."""

    def __init__(self, num_blocks: Callable[[], int]) -> None:
        """`num_blocks`: of the pool."""
        self._num_blocks = num_blocks
        self._keys: OrderedDict[bytes, None] = OrderedDict()  # longest unused first

    def num_present(self, keys: Sequence[bytes]) -> int:
        """See `PrefixView`."""
        for number, key in enumerate(keys):
            if key not in self._keys:
                return number
        return len(keys)

    def sent(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """See `PrefixView`."""
        changed = [key for key in keys if key not in self._keys]
        for key in reversed(keys):
            self._keys[key] = None
            self._keys.move_to_end(key)
        for _ in range(len(self._keys) - self._num_blocks()):
            changed.append(self._keys.popitem(last=False)[0])
        return changed

    def clear(self) -> Sequence[bytes]:
        """See `PrefixView`."""
        gone = tuple(self._keys)
        self._keys.clear()
        return gone

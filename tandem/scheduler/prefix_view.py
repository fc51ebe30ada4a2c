"""What the gateway believes to be in the cache of a replica: the content keys of published blocks.

It is a belief: what it says wrong costs a good place in the queue, never a wrong answer. Prefill asks memd itself.
"""

from collections.abc import Sequence
from typing import Protocol

from tandem.kv.cache_store import CacheNews


class PrefixView(Protocol):
    """Keys by `tandem.kv.contents`. What changes returns the keys that came or went, so that forecasts follow."""

    def num_present(self, keys: Sequence[bytes]) -> int:
        """How many of the first of them are there."""
        ...

    def sent(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Blocks with these contents are there, or about to be computed for one sequence, in this order."""
        ...

    def computed(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """A sequence that was sent with these keys has all of them: its memd knows, and will soon tell."""
        ...

    def ended(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """A sequence that was sent with these keys computes no more: what its memd has told of is there."""
        ...

    def hear(self, news: CacheNews) -> Sequence[bytes]:
        """Its memd has told something."""
        ...

"""Which segments are worth an entry of their own: those that are seen a second time, or that a client declared.

An entry is the KV of a segment computed alone, behind the model's first token and nothing else, so that it depends on
the namespace and the tokens only: nobody's text before it can have changed it. A segment that is seen once would cost
more than it gives. What entries there are, and which go when room is needed, is memd's to know.
"""

from collections import OrderedDict
from enum import Enum, auto


class Sight(Enum):
    """What a prompt does about a segment that has no entry."""

    FIRST = auto()  # compute it as part of the prompt
    BUILD = auto()  # the same, and make its entry
    BEING_BUILT = auto()  # the same; another prompt makes its entry


class SegmentSights:
    """The newest keys that were seen once, and those whose entries are being built. Not for several threads."""

    def __init__(self, num_remembered: int) -> None:
        self._num_remembered = num_remembered
        self._seen_once: OrderedDict[bytes, None] = OrderedDict()
        self._being_built: set[bytes] = set()

    def see(self, key: bytes, *, is_declared: bool) -> Sight:
        """A prompt has the segment, and there is no entry. Who is told to build it calls `built` or `abandon`."""
        if key in self._being_built:
            return Sight.BEING_BUILT
        if is_declared or key in self._seen_once:
            self._seen_once.pop(key, None)
            self._being_built.add(key)
            return Sight.BUILD
        self._remember(key)
        return Sight.FIRST

    def built(self, key: bytes) -> None:
        """The entry is there; once it has been given up, the segment is new again."""
        self._being_built.discard(key)

    def abandon(self, key: bytes) -> None:
        """It was not built after all; the next sight counts as the second."""
        self._being_built.discard(key)
        self._remember(key)

    def _remember(self, key: bytes) -> None:
        self._seen_once[key] = None
        if len(self._seen_once) > self._num_remembered:
            self._seen_once.popitem(last=False)

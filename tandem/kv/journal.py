"""What was published and withdrawn last, numbered, in bounded memory: by this, views of the cache elsewhere stay true.

A reader keeps nothing here: it names the number up to which it has read. One that is too late for the ring has missed
something and must begin with what is published now.
"""

from collections.abc import Callable
from dataclasses import dataclass

CAPACITY = 8192  # events; each is a few hundred bytes


@dataclass(frozen=True, slots=True)
class BlockStored:
    """Found by its key from now on; `parent` is the key before it, or, of a sequence's first block, the namespace."""

    namespace: bytes
    parent: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """Not found any more."""

    key: bytes


@dataclass(frozen=True, slots=True)
class CacheCleared:
    """Nothing is found."""


CacheEvent = BlockStored | BlockRemoved | CacheCleared


class CacheJournal:
    """A ring of the newest events. The first has number 1."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.last_number = 0
        self._ring: list[CacheEvent] = [CacheCleared()] * capacity
        self._listeners: set[Callable[[], None]] = set()

    def note(self, event: CacheEvent) -> None:
        """It has happened; listeners are told that something has."""
        self.last_number += 1
        self._ring[self.last_number % len(self._ring)] = event
        for listener in self._listeners:
            listener()

    def after(self, number: int, most: int) -> tuple[CacheEvent, ...] | None:
        """The first `most` events behind event `number`; None when some of them are not known (any more)."""
        num_behind = self.last_number - number
        if not 0 <= num_behind <= len(self._ring):
            return None
        numbers = range(number + 1, number + 1 + min(most, num_behind))
        return tuple(self._ring[each % len(self._ring)] for each in numbers)

    def listen(self, listener: Callable[[], None]) -> None:
        """It is called after each event, and must not raise."""
        self._listeners.add(listener)

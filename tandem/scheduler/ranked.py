"""Queues whose order is one of ranks: those that compare two entries without the time, and without tenants."""

from collections.abc import Callable
from typing import Generic

from sortedcontainers import SortedDict

from tandem.scheduler.waiting import Item, WaitingEntry

Rank = tuple[float, ...]


class RankedQueue(Generic[Item]):
    """An `OrderingPolicy`: the lowest rank is next, equals in order of their pushes. Every call takes O(log n)."""

    def __init__(self, rank: Callable[[WaitingEntry], Rank]) -> None:
        """Every rank has the same length."""
        self._rank = rank
        self._num_pushed = 0
        self._places: dict[Item, Rank] = {}
        self._items = SortedDict()  # by place: an item's rank, and the number of its push

    def __len__(self) -> int:
        return len(self._places)

    def push(self, item: Item, entry: WaitingEntry) -> None:
        """See `OrderingPolicy`."""
        if item in self._places:
            raise ValueError(f"{item!r} is in the queue already")
        self._num_pushed += 1
        self._put(item, (*self._rank(entry), self._num_pushed))

    def update(self, item: Item, entry: WaitingEntry) -> None:
        """See `OrderingPolicy`."""
        before = self._places[item]
        del self._items[before]
        self._put(item, (*self._rank(entry), before[-1]))

    def pop(self, now_unix_ns: int) -> Item:
        """See `OrderingPolicy`."""
        if not self._places:
            raise IndexError("pop from an empty queue")
        item: Item = self._items.popitem(0)[1]
        del self._places[item]
        return item

    def discard(self, item: Item) -> bool:
        """See `OrderingPolicy`."""
        place = self._places.pop(item, None)
        if place is None:
            return False
        del self._items[place]
        return True

    def charge(self, tenant: str, num_tokens: float) -> None:
        """What a tenant has had changes nothing here."""

    def _put(self, item: Item, place: Rank) -> None:
        self._places[item] = place
        self._items[place] = item

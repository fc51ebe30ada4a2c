"""The waiting queue: whose turn is next, and how many may go. Pure; the caller brings what time there is."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sortedcontainers import SortedDict

Rank = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WaitingEntry:
    """What an order can be made of. A sequence that comes back keeps its request's arrival, and so its place."""

    priority: int  # higher is served first
    arrival_unix_ns: int
    index: int  # which of the request's answers


class OrderingPolicy(Protocol):
    """Ranks entries: the lowest rank is served first. The rank of an entry must not change while it waits."""

    def rank(self, entry: WaitingEntry) -> Rank:
        """Compared as a tuple; every rank of one policy has the same length."""
        ...


class FirstComeFirstServed:
    """By priority, then by arrival, then by answer."""

    def rank(self, entry: WaitingEntry) -> Rank:
        """See `OrderingPolicy`."""
        return (-entry.priority, entry.arrival_unix_ns, entry.index)


Item = TypeVar("Item", bound=Hashable)


class WaitingQueue(Generic[Item]):
    """Items in a policy's order, equals in order of their pushes. Push, pop and discard take O(log n)."""

    def __init__(self, policy: OrderingPolicy) -> None:
        self._policy = policy
        self._num_pushed = 0
        self._places: dict[Item, Rank] = {}
        self._items = SortedDict()  # by place: an item's rank, and the number of its push

    def __len__(self) -> int:
        return len(self._places)

    def push(self, item: Item, entry: WaitingEntry) -> None:
        """Adds `item`. ValueError when it waits already."""
        if item in self._places:
            raise ValueError(f"{item!r} is in the queue already")
        self._num_pushed += 1
        place = (*self._policy.rank(entry), self._num_pushed)
        self._places[item] = place
        self._items[place] = item

    def pop(self) -> Item:
        """Takes the first item out. IndexError when there is none."""
        if not self._places:
            raise IndexError("pop from an empty queue")
        item: Item = self._items.popitem(0)[1]
        del self._places[item]
        return item

    def discard(self, item: Item) -> bool:
        """Takes `item` out, wherever it stands; returns whether it was there."""
        place = self._places.pop(item, None)
        if place is None:
            return False
        del self._items[place]
        return True


def num_dispatchable(num_waiting: int, num_running: int, max_running: int) -> int:
    """How many of the waiting sequences may go to the phases now."""
    return min(num_waiting, max(0, max_running - num_running))

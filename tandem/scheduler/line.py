"""Those who wait, or run, kept in an order, so that who looks at the first or the last few does not look at all."""

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from sortedcontainers import SortedKeyList


class Named(Protocol):
    """What can stand in a line."""

    @property
    def lease_id(self) -> int:
        """Names it there."""
        ...


NamedT = TypeVar("NamedT", bound=Named)


class Line(Generic[NamedT]):
    """Items in the order of `key`, which must not change while they stand in it; equal keys in no particular order.

    `add` and `discard` take O(log n), either end's first k items O(k). Not to be changed while it is gone through.
    """

    def __init__(self, key: Callable[[NamedT], tuple[int, ...]]) -> None:
        self._items: dict[int, NamedT] = {}  # by lease
        self._order = SortedKeyList(key=key)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._items

    def __iter__(self) -> Iterator[NamedT]:
        return iter(self._order)

    def __reversed__(self) -> Iterator[NamedT]:
        return iter(reversed(self._order))

    def add(self, item: NamedT) -> None:
        """ValueError when one of its name stands in line already."""
        if item.lease_id in self._items:
            raise ValueError(f"lease {item.lease_id} stands in line already")
        self._items[item.lease_id] = item
        self._order.add(item)

    def discard(self, lease_id: int) -> None:
        """Nothing happens when it does not stand in line."""
        item = self._items.pop(lease_id, None)
        if item is not None:
            self._order.remove(item)

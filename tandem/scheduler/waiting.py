"""What waits at the gateway, and the protocol of those who say whose turn is next. Pure; the caller brings the time."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, TypeVar

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class WaitingEntry:
    """What an order can be made of. A sequence that comes back keeps its request's arrival."""

    priority: int  # higher is served first
    arrival_unix_ns: int
    index: int  # which of the request's answers
    tenant: str = ""
    num_tokens: int = 1  # that KV is needed of
    num_cached_tokens: int = 0  # of them, those that are expected to be found

    @property
    def work_tokens(self) -> int:
        """To be computed, as far as predicted; at least one always is."""
        return max(1, self.num_tokens - self.num_cached_tokens)


class OrderingPolicy(Protocol[Item]):
    """A queue in an order of its own. No call takes more than O(log n) with n waiting."""

    def __len__(self) -> int: ...

    def push(self, item: Item, entry: WaitingEntry) -> None:
        """Adds `item`. ValueError when it waits already."""
        ...

    def update(self, item: Item, entry: WaitingEntry) -> None:
        """`item` waits, and less or more of it is expected to be found; nothing else of its entry may differ."""
        ...

    def pop(self, now_unix_ns: int) -> Item:
        """Takes out whose turn it is. IndexError when nobody waits."""
        ...

    def discard(self, item: Item) -> bool:
        """Takes `item` out, wherever it stands; returns whether it was there."""
        ...

    def charge(self, tenant: str, num_tokens: float) -> None:
        """They were computed for that tenant; below zero: it has been charged too much."""
        ...

"""The order ``kvshare``: who has the highest response ratio by the work that the cache leaves, in fair shares.

First come the higher priorities, and with them whatever has waited longer than a bound; among those the tenant that
has had least; of its requests what has waited too long, the oldest first, or else the highest response ratio. So what
is cached drains quickly, nothing of a tenant that keeps to its share waits beyond the bound, and a tenant that floods
the queue waits for its own flood.
"""

from typing import Generic

from sortedcontainers import SortedList

from tandem.scheduler.fair_share import OVERDUE, FairShare
from tandem.scheduler.response_ratio import Item, Place, RatioLine, by_age
from tandem.scheduler.waiting import WaitingEntry

NS_PER_S = 1e9


class KvShare(Generic[Item]):
    """An `OrderingPolicy`. Every call takes O(log n), `pop` also O(classes of work)."""

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_ns = int(max_wait_s * NS_PER_S)
        self._num_pushed = 0
        self._places: dict[Item, Place[Item]] = {}
        self._tenants: dict[str, _TenantLine[Item]] = {}
        self._share = FairShare()
        self._oldest_unix_ns: dict[str, int] = {}  # each tenant's oldest arrival
        self._in_time = SortedList()  # those with the tenant; what is known to be overdue is not in it

    def __len__(self) -> int:
        return len(self._places)

    def push(self, item: Item, entry: WaitingEntry) -> None:
        """See `OrderingPolicy`."""
        if item in self._places:
            raise ValueError(f"{item!r} is in the queue already")
        self._num_pushed += 1
        self._enter(Place(item, entry, self._num_pushed))

    def update(self, item: Item, entry: WaitingEntry) -> None:
        """See `OrderingPolicy`."""
        before = self._places[item]
        after = self._places[item] = Place(item, entry, before.number)
        line = self._tenants[entry.tenant]
        line.discard(before)
        line.add(after)

    def discard(self, item: Item) -> bool:
        """See `OrderingPolicy`."""
        place = self._places.get(item)
        if place is not None:
            self._leave(place)
        return place is not None

    def pop(self, now_unix_ns: int) -> Item:
        """See `OrderingPolicy`."""
        self._note_overdue(now_unix_ns)
        turn = self._share.first()
        line = self._tenants[turn.tenant]
        place = line.oldest if turn.level == OVERDUE else line.by_priority[-int(turn.level)].best(now_unix_ns)
        self._leave(place)
        return place.item

    def charge(self, tenant: str, num_tokens: float) -> None:
        """See `OrderingPolicy`."""
        self._share.charge(tenant, num_tokens)

    def _enter(self, place: Place[Item]) -> None:
        entry = place.entry
        self._places[place.item] = place
        line = self._tenants.get(entry.tenant)
        if line is None:
            line = self._tenants[entry.tenant] = _TenantLine()
        line.add(place)
        self._share.enter(entry.tenant, -entry.priority)
        self._note_oldest(entry.tenant)

    def _leave(self, place: Place[Item]) -> None:
        entry = place.entry
        del self._places[place.item]
        line = self._tenants[entry.tenant]
        line.discard(place)
        if not line:
            del self._tenants[entry.tenant]
        self._note_oldest(entry.tenant)
        if entry.priority not in line.by_priority:
            self._share.leave(entry.tenant, -entry.priority)

    def _note_oldest(self, tenant: str) -> None:
        """A tenant's oldest may be another one now, which may be in time."""
        line = self._tenants.get(tenant)
        arrival_unix_ns = None if line is None else line.oldest.entry.arrival_unix_ns
        known_unix_ns = self._oldest_unix_ns.pop(tenant, None)
        if arrival_unix_ns is not None:
            self._oldest_unix_ns[tenant] = arrival_unix_ns
        if arrival_unix_ns == known_unix_ns:
            return
        if known_unix_ns is not None:
            self._in_time.discard((known_unix_ns, tenant))
        self._share.leave(tenant, OVERDUE)
        if arrival_unix_ns is not None:
            self._in_time.add((arrival_unix_ns, tenant))

    def _note_overdue(self, now_unix_ns: int) -> None:
        while self._in_time and self._in_time[0][0] + self._max_wait_ns <= now_unix_ns:
            _, tenant = self._in_time.pop(0)
            self._share.enter(tenant, OVERDUE)


class _TenantLine(Generic[Item]):
    """What one tenant has waiting."""

    def __init__(self) -> None:
        self._by_age = by_age()
        self.by_priority: dict[int, RatioLine[Item]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_age)

    @property
    def oldest(self) -> Place[Item]:
        """IndexError when nothing waits."""
        place: Place[Item] = self._by_age[0]
        return place

    def add(self, place: Place[Item]) -> None:
        """It waits from now on."""
        self._by_age.add(place)
        line = self.by_priority.get(place.entry.priority)
        if line is None:
            line = self.by_priority[place.entry.priority] = RatioLine()
        line.add(place)

    def discard(self, place: Place[Item]) -> None:
        """It waits no longer."""
        self._by_age.remove(place)
        line = self.by_priority[place.entry.priority]
        line.discard(place)
        if not line:
            del self.by_priority[place.entry.priority]

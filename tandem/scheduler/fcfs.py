"""The order ``fcfs``: by priority, then by arrival, then by answer."""

from tandem.scheduler.ranked import Rank, RankedQueue
from tandem.scheduler.waiting import Item, WaitingEntry


def first_come_first_served() -> RankedQueue[Item]:
    """An empty queue in that order."""
    return RankedQueue(_rank)


def _rank(entry: WaitingEntry) -> Rank:
    return (-entry.priority, entry.arrival_unix_ns, entry.index)

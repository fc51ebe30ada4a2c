"""The order ``longest-prefix``: by priority, then by how much of the prompt is cached, most first, then by arrival.

What SGLang calls longest prefix match (Zheng et al., "SGLang", NeurIPS 2024, section 3): good for the hit rate, and
without a bound on waiting for who has nothing cached.
"""

from tandem.scheduler.ranked import Rank, RankedQueue
from tandem.scheduler.waiting import Item, WaitingEntry


def longest_prefix_first() -> RankedQueue[Item]:
    """An empty queue in that order."""
    return RankedQueue(_rank)


def _rank(entry: WaitingEntry) -> Rank:
    return (-entry.priority, -entry.num_cached_tokens, entry.arrival_unix_ns, entry.index)

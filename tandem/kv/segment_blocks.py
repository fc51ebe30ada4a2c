"""The published blocks of segments, by the domain that shares them: how many each has, and which go first.

Segments have a part of the pool and no more. When that is full, a new block takes the place of the one that has been
unused longest in the domain that has most, and never of one in a domain that has no more than its own: so each domain
keeps an equal share, or what it needs of it, whatever the others ask for.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(slots=True)
class DomainBlocks:
    """What one domain has."""

    num_blocks: int = 0
    cached: OrderedDict[int, None] = field(default_factory=OrderedDict)  # that may be given up, in that order


class SegmentBlocks:
    """Of blocks that are no segment's it knows nothing, and takes every word of them."""

    def __init__(self) -> None:
        self._domains: dict[int, bytes] = {}  # by block
        self._by_domain: dict[bytes, DomainBlocks] = {}
        self._ranking: list[tuple[int, bytes]] = []  # of those that have something to give up, by how much they have

    def __len__(self) -> int:
        return len(self._domains)

    def add(self, block_id: int, domain: bytes) -> None:
        """A block of a segment is published."""
        entry = self._unranked(domain)
        entry.num_blocks += 1
        self._domains[block_id] = domain
        self._rank(domain, entry)

    def discard(self, block_id: int) -> None:
        """It is published no more."""
        domain = self._domains.pop(block_id, None)
        if domain is None:
            return
        entry = self._unranked(domain)
        entry.num_blocks -= 1
        entry.cached.pop(block_id, None)
        self._rank(domain, entry)

    def keep(self, block_id: int) -> None:
        """It may be given up, after all others."""
        domain = self._domains.get(block_id)
        if domain is not None:
            entry = self._unranked(domain)
            entry.cached[block_id] = None
            entry.cached.move_to_end(block_id)
            self._rank(domain, entry)

    def use(self, block_id: int) -> None:
        """It may not be given up."""
        domain = self._domains.get(block_id)
        if domain is not None:
            entry = self._unranked(domain)
            entry.cached.pop(block_id, None)
            self._rank(domain, entry)

    def first_to_go(self, domain: bytes) -> int | None:
        """For a block of `domain`; None when nothing may be given up for it."""
        if not self._ranking:
            return None
        num_most, largest = self._ranking[-1]
        own = self._by_domain.get(domain, DomainBlocks())
        chosen = self._by_domain[largest] if num_most > own.num_blocks else own
        return next(iter(chosen.cached), None)

    def unordered(self) -> tuple[object, ...]:
        """All but the order of use."""
        cached = {domain: (entry.num_blocks, set(entry.cached)) for domain, entry in self._by_domain.items()}
        return self._domains, cached, self._ranking

    def _unranked(self, domain: bytes) -> DomainBlocks:
        entry = self._by_domain.setdefault(domain, DomainBlocks())
        if entry.cached:
            del self._ranking[bisect_left(self._ranking, (entry.num_blocks, domain))]
        return entry

    def _rank(self, domain: bytes, entry: DomainBlocks) -> None:
        if entry.cached:
            insort(self._ranking, (entry.num_blocks, domain))
        elif not entry.num_blocks:
            del self._by_domain[domain]

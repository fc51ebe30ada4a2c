"""Published blocks by the sharing domain whose they are: how many each domain has, and which go first.

When room is needed, the block goes that has been unused longest in the domain that has most of those with anything to
give up. So each domain keeps an equal share, or what it needs of it, whatever the others ask for; with one domain the
order is that of use alone.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

BlockT = TypeVar("BlockT", bound=Hashable)
NOBODY = b""  # a domain that has nothing


@dataclass(slots=True)
class DomainPart(Generic[BlockT]):
    """What one domain has."""

    num_blocks: int = 0
    idle: OrderedDict[BlockT, None] = field(default_factory=OrderedDict)  # that may be given up, in that order
    rank: int = 0  # as it stands in the ranking; 0: not there


class DomainBlocks(Generic[BlockT]):
    """Of blocks that were not added it knows nothing, and takes every word of them.

    A call takes O(log domains), and where no domain's place among the others changes O(1).
    """

    def __init__(self) -> None:
        self.num_idle = 0
        self._domains: dict[BlockT, bytes] = {}
        self._parts: dict[bytes, DomainPart[BlockT]] = {}
        self._ranking: list[tuple[int, bytes]] = []  # of those that have something to give up, by how much they have

    def __len__(self) -> int:
        return len(self._domains)

    def __contains__(self, block: BlockT) -> bool:
        return block in self._domains

    def __iter__(self) -> Iterator[BlockT]:
        return iter(self._domains)

    def is_idle(self, block: BlockT) -> bool:
        """Whether it may be given up."""
        domain = self._domains.get(block)
        return domain is not None and block in self._parts[domain].idle

    def add(self, block: BlockT, domain: bytes) -> None:
        """It is published, and in use."""
        part = self._parts.setdefault(domain, DomainPart())
        part.num_blocks += 1
        self._domains[block] = domain
        self._rank(domain, part)

    def discard(self, block: BlockT) -> None:
        """It is published no more."""
        self.use(block)
        domain = self._domains.pop(block, None)
        if domain is not None:
            part = self._parts[domain]
            part.num_blocks -= 1
            self._rank(domain, part)

    def keep(self, block: BlockT) -> None:
        """It may be given up, after all others of its domain."""
        domain = self._domains.get(block)
        if domain is not None:
            part = self._parts[domain]
            self.num_idle += block not in part.idle
            part.idle[block] = None
            part.idle.move_to_end(block)
            self._rank(domain, part)

    def use(self, block: BlockT) -> None:
        """It may not be given up."""
        domain = self._domains.get(block)
        if domain is not None and block in self._parts[domain].idle:
            part = self._parts[domain]
            del part.idle[block]
            self.num_idle -= 1
            self._rank(domain, part)

    def first_to_go(self, domain: bytes = NOBODY) -> BlockT | None:
        """For a block of `domain`, which has no right to those of one that has no more; None: nothing may go."""
        if not self._ranking:
            return None
        num_most, largest = self._ranking[-1]
        own = self._parts.get(domain)
        chosen = self._parts[largest] if own is None or num_most > own.num_blocks else own
        return next(iter(chosen.idle), None)

    def unordered(self) -> tuple[object, ...]:
        """All but the order of use."""
        idle = {domain: (part.num_blocks, set(part.idle)) for domain, part in self._parts.items()}
        return self._domains, idle, self._ranking

    def _rank(self, domain: bytes, part: DomainPart[BlockT]) -> None:
        rank = part.num_blocks if part.idle else 0
        if rank != part.rank:
            if part.rank:
                del self._ranking[bisect_left(self._ranking, (part.rank, domain))]
            if rank:
                insort(self._ranking, (rank, domain))
            part.rank = rank
        if not part.num_blocks:
            del self._parts[domain]

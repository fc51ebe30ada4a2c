"""Which sequences decode steps, who joins, and who must go when the blocks run out. Pure.

Blocks are handed out in rank order (`tandem.scheduler.rank`) and strictly: once a sequence goes without, nobody behind
it gets any, so the first in rank always advances and everyone becomes the first one day. Who needs none steps in any
case. Victims are taken from the order's other end, among the running and the waiting alike, since both hold blocks.

The running all step, so all are looked at; of the waiting only those with whom something happens.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain, islice, takewhile

from tandem.scheduler.demand import BlockDemand
from tandem.scheduler.line import Line
from tandem.scheduler.rank import rank_key


class PoolState(Enum):
    """What the phase knows of memd's pool."""

    OPEN = "open"  # a refill may bring blocks
    DRY = "dry"  # the pool has refused repeatedly since the last preemption
    BARREN = "barren"  # dry, and no step was possible for a while


@dataclass(frozen=True, slots=True)
class DecodeCandidate:
    """A sequence whose lease is acquired; `num_missing_blocks` are those its next step lacks."""

    lease_id: int
    priority: int
    arrival_unix_ns: int
    num_held_blocks: int
    num_missing_blocks: int


@dataclass(frozen=True, slots=True)
class BlockStock:
    """The blocks at hand, and those there are at all."""

    num_spare_blocks: int
    num_pool_blocks: int
    pool: PoolState


@dataclass(frozen=True, slots=True)
class Grant:
    """A sequence that steps, with the spare blocks it takes first."""

    lease_id: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """One step."""

    grants: tuple[Grant, ...]  # who steps: the running first, then the joining, each in rank order
    preempted: tuple[int, ...]
    hopeless: tuple[int, ...]  # larger than the whole pool: sending them again would not help
    demand: BlockDemand


class WaitingCandidates:
    """Who waits to join, by rank and by size; `add` and `discard` take O(log n)."""

    def __init__(self) -> None:
        self._by_rank: Line[DecodeCandidate] = Line(rank_key)
        self._by_size: Line[DecodeCandidate] = Line(_size_key)

    def __len__(self) -> int:
        return len(self._by_rank)

    def __iter__(self) -> Iterator[DecodeCandidate]:
        return iter(self._by_rank)

    def __reversed__(self) -> Iterator[DecodeCandidate]:
        return reversed(self._by_rank)

    def add(self, candidate: DecodeCandidate) -> None:
        """ValueError when its lease waits already."""
        self._by_rank.add(candidate)
        self._by_size.add(candidate)

    def discard(self, lease_id: int) -> None:
        """Nothing happens when it does not wait."""
        self._by_rank.discard(lease_id)
        self._by_size.discard(lease_id)

    def larger_than(self, num_blocks: int) -> Iterator[DecodeCandidate]:
        """Those that need more blocks in all, the largest first."""
        return takewhile(lambda candidate: _total_blocks(candidate) > num_blocks, reversed(self._by_size))


def plan_step(
    running: Sequence[DecodeCandidate], waiting: WaitingCandidates, stock: BlockStock, max_sequences: int
) -> DecodePlan:
    """Decides one step. `running` is in rank order; a sequence is in `running` or in `waiting`, not in both."""
    too_large = (c for c in running if _total_blocks(c) > stock.num_pool_blocks)
    hopeless = frozenset(c.lease_id for c in chain(too_large, waiting.larger_than(stock.num_pool_blocks)))
    preempted = _victims(_without(running, hopeless), _Waiting(waiting, hopeless), stock)
    gone = hopeless.union(preempted)
    running = _without(running, gone)
    handout = _hand_out(running, stock.num_spare_blocks)
    num_places = 0 if handout.stalled else max(0, max_sequences - len(running))
    joining = _join(islice(_Waiting(waiting, gone), num_places), handout.num_spare_blocks)
    return DecodePlan(
        grants=handout.grants + joining.grants,
        preempted=preempted,
        hopeless=tuple(sorted(hopeless)),
        demand=_demand(bool(running), handout.stalled, joining.num_lacking_blocks),
    )


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The waiting without some, in rank order from either end."""

    candidates: WaitingCandidates
    gone: frozenset[int]

    def __iter__(self) -> Iterator[DecodeCandidate]:
        return (c for c in self.candidates if c.lease_id not in self.gone)

    def __reversed__(self) -> Iterator[DecodeCandidate]:
        return (c for c in reversed(self.candidates) if c.lease_id not in self.gone)


@dataclass(frozen=True, slots=True)
class _Handout:
    """What became of the running ones' wants."""

    grants: tuple[Grant, ...]
    stalled: tuple[DecodeCandidate, ...]
    num_spare_blocks: int


@dataclass(frozen=True, slots=True)
class _Joining:
    """Who joins, and what the first lacks for whom there is a place but not the blocks."""

    grants: tuple[Grant, ...]
    num_lacking_blocks: int


def _total_blocks(candidate: DecodeCandidate) -> int:
    return candidate.num_held_blocks + candidate.num_missing_blocks


def _size_key(candidate: DecodeCandidate) -> tuple[int, int]:
    return (_total_blocks(candidate), candidate.lease_id)


def _without(candidates: Sequence[DecodeCandidate], gone: frozenset[int]) -> list[DecodeCandidate]:
    return [c for c in candidates if c.lease_id not in gone]


def _hand_out(running: Sequence[DecodeCandidate], num_spare_blocks: int) -> _Handout:
    grants: list[Grant] = []
    stalled: list[DecodeCandidate] = []
    for candidate in running:
        missing = candidate.num_missing_blocks
        if missing and (stalled or missing > num_spare_blocks):
            stalled.append(candidate)
            continue
        num_spare_blocks -= missing
        grants.append(Grant(candidate.lease_id, missing))
    return _Handout(tuple(grants), tuple(stalled), num_spare_blocks)


def _join(waiting: Iterable[DecodeCandidate], num_spare_blocks: int) -> _Joining:
    grants: list[Grant] = []
    for candidate in waiting:
        missing = candidate.num_missing_blocks
        if missing > num_spare_blocks:
            return _Joining(tuple(grants), missing)
        num_spare_blocks -= missing
        grants.append(Grant(candidate.lease_id, missing))
    return _Joining(tuple(grants), 0)


def _victims(running: Sequence[DecodeCandidate], waiting: _Waiting, stock: BlockStock) -> tuple[int, ...]:
    """From the end of the order, until what they hold covers what the others lack; never the first in rank."""
    if stock.pool is PoolState.OPEN:
        return ()
    first_waiting = list(islice(waiting, 1))
    wanting = {c.lease_id: c.num_missing_blocks for c in (running or first_waiting)}
    shortage = sum(wanting.values()) - stock.num_spare_blocks
    if shortage <= 0:
        return ()
    first = min((*running[:1], *first_waiting), key=rank_key)
    victims: list[int] = []
    for candidate in heapq.merge(reversed(running), reversed(waiting), key=rank_key, reverse=True):
        if shortage <= 0 or candidate is first:
            break
        shortage -= candidate.num_held_blocks + wanting.get(candidate.lease_id, 0)
        victims.append(candidate.lease_id)
    if not victims and stock.pool is PoolState.BARREN:
        return (first.lease_id,)  # the only one
    return tuple(victims)


def _demand(any_running: bool, stalled: Sequence[DecodeCandidate], num_joining: int) -> BlockDemand:
    """With nobody running, the first of the waiting is what keeps the phase from standing still."""
    num_stalled = sum(c.num_missing_blocks for c in stalled)
    return BlockDemand(num_stalled, num_joining) if any_running else BlockDemand(num_joining, 0)

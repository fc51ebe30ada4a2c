"""Which sequences decode steps, who joins, and who must go when the blocks run out. Pure.

Blocks are handed out in rank order (`tandem.scheduler.rank`) and strictly: once a sequence goes without, nobody behind
it gets any, so the first in rank always advances and everyone becomes the first one day. Who needs none steps in any
case. Victims are taken from the order's other end, among the running and the waiting alike, since both hold blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tandem.scheduler.demand import BlockDemand
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


def plan_step(
    running: Sequence[DecodeCandidate], waiting: Sequence[DecodeCandidate], stock: BlockStock, max_sequences: int
) -> DecodePlan:
    """Decides one step. A sequence is in `running` or in `waiting`, not in both."""
    hopeless = frozenset(c.lease_id for c in (*running, *waiting) if _total_blocks(c) > stock.num_pool_blocks)
    running, waiting = _in_order(running, hopeless), _in_order(waiting, hopeless)
    preempted = _victims(running, waiting, stock)
    gone = frozenset(preempted)
    running, waiting = _in_order(running, gone), _in_order(waiting, gone)
    handout = _hand_out(running, stock.num_spare_blocks)
    num_places = 0 if handout.stalled else max_sequences - len(running)
    joins = _join(waiting, handout.num_spare_blocks, num_places)
    return DecodePlan(
        grants=handout.grants + joins,
        preempted=preempted,
        hopeless=tuple(sorted(hopeless)),
        demand=_demand(bool(running), handout.stalled, waiting[len(joins) : max(num_places, 0)]),
    )


@dataclass(frozen=True, slots=True)
class _Handout:
    """What became of the running ones' wants."""

    grants: tuple[Grant, ...]
    stalled: tuple[DecodeCandidate, ...]
    num_spare_blocks: int


def _total_blocks(candidate: DecodeCandidate) -> int:
    return candidate.num_held_blocks + candidate.num_missing_blocks


def _in_order(candidates: Sequence[DecodeCandidate], without: frozenset[int]) -> list[DecodeCandidate]:
    return sorted((c for c in candidates if c.lease_id not in without), key=rank_key)


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


def _join(waiting: Sequence[DecodeCandidate], num_spare_blocks: int, num_places: int) -> tuple[Grant, ...]:
    grants: list[Grant] = []
    for candidate in waiting[: max(num_places, 0)]:
        if candidate.num_missing_blocks > num_spare_blocks:
            break
        num_spare_blocks -= candidate.num_missing_blocks
        grants.append(Grant(candidate.lease_id, candidate.num_missing_blocks))
    return tuple(grants)


def _victims(
    running: Sequence[DecodeCandidate], waiting: Sequence[DecodeCandidate], stock: BlockStock
) -> tuple[int, ...]:
    """From the end of the order, until what they hold covers what the others lack; never the first in rank."""
    wanting = {c.lease_id: c.num_missing_blocks for c in (running or waiting[:1])}
    shortage = sum(wanting.values()) - stock.num_spare_blocks
    if stock.pool is PoolState.OPEN or shortage <= 0:
        return ()
    order = sorted((*running, *waiting), key=rank_key)
    if len(order) == 1:
        return (order[0].lease_id,) if stock.pool is PoolState.BARREN else ()
    victims: list[int] = []
    for candidate in reversed(order[1:]):
        if shortage <= 0:
            break
        shortage -= candidate.num_held_blocks + wanting.get(candidate.lease_id, 0)
        victims.append(candidate.lease_id)
    return tuple(victims)


def _demand(any_running: bool, stalled: Sequence[DecodeCandidate], kept_out: Sequence[DecodeCandidate]) -> BlockDemand:
    """With nobody running, the first of the waiting is what keeps the phase from standing still."""
    num_stalled = sum(c.num_missing_blocks for c in stalled)
    num_joining = kept_out[0].num_missing_blocks if kept_out else 0
    return BlockDemand(num_stalled, num_joining) if any_running else BlockDemand(num_joining, 0)

"""Which prompts prefill works on, and how a step's token budget is shared among them. Pure.

A prompt is admitted with all the blocks it needs, so that what runs always ends. The order is strict: a prompt that
does not fit yet holds back those behind it, or long prompts would wait for ever. The budget goes to the first in rank
first, so that its first token comes as early as it can; what it leaves is shared by those behind it.

Prompts are handed in in rank order (`tandem.scheduler.rank`), and no more of them are looked at than get something.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass

from tandem.scheduler.demand import NO_DEMAND, BlockDemand


@dataclass(frozen=True, slots=True)
class WaitingPrompt:
    """A prompt whose lease is acquired; `num_missing_blocks` are those its lease does not have yet."""

    lease_id: int
    priority: int
    arrival_unix_ns: int
    num_missing_blocks: int


@dataclass(frozen=True, slots=True)
class RunningPrompt:
    """An admitted prompt with `num_tokens_left` >= 1 tokens to compute."""

    lease_id: int
    priority: int
    arrival_unix_ns: int
    num_tokens_left: int


@dataclass(frozen=True, slots=True)
class Admission:
    """Who is admitted, in rank order, and what the first of those left behind lacks."""

    lease_ids: tuple[int, ...]
    demand: BlockDemand


@dataclass(frozen=True, slots=True)
class Chunk:
    """A sequence's part of a step."""

    lease_id: int
    num_tokens: int


def admit(waiting: Iterable[WaitingPrompt], *, num_places: int, num_spare_blocks: int) -> Admission:
    """The first of `waiting`, as many as there are places and as the spare blocks suffice for."""
    admitted: list[int] = []
    for prompt in waiting:
        if len(admitted) >= num_places:
            break
        if prompt.num_missing_blocks > num_spare_blocks:
            return Admission(tuple(admitted), BlockDemand(num_joining_blocks=prompt.num_missing_blocks))
        num_spare_blocks -= prompt.num_missing_blocks
        admitted.append(prompt.lease_id)
    return Admission(tuple(admitted), NO_DEMAND)


@dataclass(frozen=True, slots=True)
class ClaimPlan:
    """Whose turn it is to look for blocks that others have computed, and who must give up what it found.

    Found blocks cannot be given to anybody else. So only a prompt that all before it leave room for looks, and when the
    first in rank lacks blocks, those behind it keep nothing.
    """

    claim: int | None = None
    give_up: tuple[int, ...] = ()


def plan_claims(
    waiting: Iterable[WaitingPrompt], settled: Set[int], *, num_places: int, num_spare_blocks: int
) -> ClaimPlan:
    """`waiting` in rank order; `settled` are those that have looked."""
    passed: set[int] = set()
    for prompt in waiting:
        if len(passed) >= num_places:
            break
        if prompt.lease_id not in settled:
            return ClaimPlan(claim=prompt.lease_id)
        passed.add(prompt.lease_id)
        if prompt.num_missing_blocks > num_spare_blocks:
            return ClaimPlan(give_up=tuple(sorted(settled - passed)))
        num_spare_blocks -= prompt.num_missing_blocks
    return ClaimPlan()


def share_budget(running: Iterable[RunningPrompt], chunk_tokens: int) -> tuple[Chunk, ...]:
    """A step's chunks, in the order of `running`; together `chunk_tokens` tokens, or fewer where there are no more."""
    chunks: list[Chunk] = []
    for prompt in running:
        num_tokens = min(prompt.num_tokens_left, chunk_tokens)
        if num_tokens == 0:
            break
        chunk_tokens -= num_tokens
        chunks.append(Chunk(prompt.lease_id, num_tokens))
    return tuple(chunks)

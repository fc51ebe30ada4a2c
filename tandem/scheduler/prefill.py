"""Which prompts prefill works on, and how a step's token budget is shared among them. Pure.

A prompt is admitted with all the blocks it needs, so that what runs always ends. The order is strict: a prompt that
does not fit yet holds back those behind it, or long prompts would wait for ever. The budget goes to the first in rank
first, so that its first token comes as early as it can; what it leaves is shared by those behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.scheduler.demand import NO_DEMAND, BlockDemand
from tandem.scheduler.rank import rank_key


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


def admit(waiting: Sequence[WaitingPrompt], *, num_places: int, num_spare_blocks: int) -> Admission:
    """The first in rank, as many as there are places and as the spare blocks suffice for."""
    admitted: list[int] = []
    for prompt in sorted(waiting, key=rank_key):
        if len(admitted) >= num_places:
            break
        if prompt.num_missing_blocks > num_spare_blocks:
            return Admission(tuple(admitted), BlockDemand(num_joining_blocks=prompt.num_missing_blocks))
        num_spare_blocks -= prompt.num_missing_blocks
        admitted.append(prompt.lease_id)
    return Admission(tuple(admitted), NO_DEMAND)


def share_budget(running: Sequence[RunningPrompt], chunk_tokens: int) -> tuple[Chunk, ...]:
    """A step's chunks in rank order; together at most `chunk_tokens` tokens, and that many if they are there."""
    chunks: list[Chunk] = []
    for prompt in sorted(running, key=rank_key):
        num_tokens = min(prompt.num_tokens_left, chunk_tokens)
        if num_tokens == 0:
            break
        chunk_tokens -= num_tokens
        chunks.append(Chunk(prompt.lease_id, num_tokens))
    return tuple(chunks)

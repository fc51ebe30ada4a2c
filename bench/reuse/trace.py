"""A trace with shared blocks through a system, one request after another, and the replays of the same order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.reuse.asking import Ask, Question
from bench.reuse.replay import Served, replay
from bench.workloads.request import PlannedRequest
from bench.workloads.tokens import TokenRange, prompt_tokens
from tandem.kv.store import StorageStatistics

POOL = "whole pool"
IDLE_POOL = "pool less spare"
ANY_SIZE = "any size"


@dataclass(frozen=True, slots=True)
class Replay:
    """What a cache of `num_blocks` (None: any number) gives each request."""

    name: str
    num_blocks: int | None
    num_cached_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """What prompts are made of; `run_id` makes the text another one in each run."""

    tokens: TokenRange
    run_id: str


def serve(requests: Sequence[PlannedRequest], text: Text, ask: Ask, advance: Callable[[], None]) -> tuple[Served, ...]:
    """Each request when the one before has been answered, so that the order is always the same."""
    served: list[Served] = []
    for request in requests:
        prompt = tuple(prompt_tokens(request.spans, text.tokens, text.run_id))
        reply = ask(Question(prompt, request.max_tokens))
        served.append(Served(prompt, reply.token_ids, reply.num_cached_tokens))
        advance()
    return tuple(served)


def replays(served: Sequence[Served], pool: StorageStatistics) -> tuple[Replay, ...]:
    """With the whole pool; without the blocks that the phases hold ahead of need; and without limit."""
    num_spare = pool.num_spare_blocks
    sizes = {POOL: pool.num_blocks, IDLE_POOL: pool.num_blocks - num_spare, ANY_SIZE: None}
    block_size = pool.fingerprint.block_size
    return tuple(Replay(name, size, replay(served, block_size, size)) for name, size in sizes.items())

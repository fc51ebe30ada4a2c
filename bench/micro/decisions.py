"""What deciding costs, by how many wait: the gateway's queue, and a phase's whole step but for the model.

In steady state: with each step some end, as many join, and as many come. The time is the step's; what happens between
two steps (a sequence's arrival) is not in it.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from itertools import count
from statistics import median
from typing import Any

from bench.micro.engines import BLOCK_SIZE, Blocks, make_outfit, new_lease
from bench.micro.table import DecisionCost
from services.decode.engine import DecodeEngine
from services.prefill.engine import PrefillEngine
from tandem.config.settings import QueuePolicy
from tandem.kv.cache_store import CacheNews
from tandem.kv.journal import BlockStored
from tandem.kv.store import SequenceLease
from tandem.phase.engine import PhaseEngine
from tandem.phase.limits import PhaseLimits
from tandem.phase.outfit import Outfit
from tandem.routing.published import PublishedBlocks, PublishedPrefixes
from tandem.runner.sampler import SampledToken
from tandem.scheduler.dispatch import Claim, Dispatcher
from tandem.scheduler.policies import POLICIES, PolicyOptions, make_policy
from tandem.types import Block, Phase, SamplingSpec, SequenceSpec, StopSpec, Submit

DEPTHS = (1, 10, 100, 1_000, 10_000)
LIMITS = PhaseLimits(
    max_sequences=32, block_size=BLOCK_SIZE, num_pool_blocks=1 << 20, vocab_size=1 << 10, max_context_tokens=1 << 12
)
PROMPT_TOKENS = 64
CHUNK_TOKENS = 4 * PROMPT_TOKENS  # four prompts a step
MOST_OUTPUT_TOKENS = 32  # about two sequences end with each decode step
NUM_AHEAD_BLOCKS = 1 << 10
STEPS_A_ROUND = 20
NUM_UNCOUNTED = 2 * MOST_OUTPUT_TOKENS
NUM_TENANTS = 8
GAP_NS = 1_000_000  # between arrivals
TOKEN = SampledToken(7, None)
US = 1e6

TimesUs = list[float]


def measure_decisions(num_rounds: int) -> tuple[DecisionCost, ...]:
    """Every decision at every depth. Sequences that end are logged: less than errors must be cut."""
    return tuple(
        DecisionCost(name, depth, median(asyncio.run(take(depth, num_rounds * STEPS_A_ROUND))))
        for name, take in DECISIONS.items()
        for depth in DEPTHS
    )


async def _next_request(policy: QueuePolicy, depth: int, num_steps: int) -> TimesUs:
    """The gateway's queue: one goes and is done with, another comes, and memd tells of what was computed."""
    options = PolicyOptions(max_wait_s=1e-9 * depth * GAP_NS / 2)
    view = PublishedPrefixes(_num_blocks, PublishedBlocks(_num_blocks))
    queue: Dispatcher[int] = Dispatcher(make_policy(policy, options), view, CHUNK_TOKENS)
    for number in range(depth):
        queue.push(number, _claim(number))
    news = [_news(number) for number in range(depth + num_steps)]
    times_us: TimesUs = []
    for number in range(depth, depth + num_steps):
        started_s = time.perf_counter()
        taken = queue.take(number * GAP_NS)
        queue.push(number, _claim(number))
        if taken is not None:
            queue.finish(taken, CHUNK_TOKENS)
            queue.hear(news[taken])
        times_us.append((time.perf_counter() - started_s) * US)
    return times_us


def _num_blocks() -> int:
    return LIMITS.num_pool_blocks


def _news(number: int) -> CacheNews:
    """Of a prompt's blocks; most of them are known."""
    return CacheNews(tuple(BlockStored(b"", b"", key) for key in _claim(number).keys), None, BLOCK_SIZE)


def _claim(number: int) -> Claim:
    """Works from short to long, tenants, and prompts that begin alike."""
    keys = tuple((number % shared, shared).__hash__().to_bytes(8, "little", signed=True) for shared in (4, 64, 1024))
    return Claim(
        priority=0,
        arrival_unix_ns=number * GAP_NS,
        index=0,
        tenant=str(number % NUM_TENANTS),
        num_tokens=3 * BLOCK_SIZE + number * 37 % 4096,
        keys=keys,
        block_size=BLOCK_SIZE,
    )


async def _decode_step(depth: int, num_steps: int) -> TimesUs:
    """At its bound of running sequences, the others waiting to join."""
    blocks = tuple(Block(number, 1) for number in range(PROMPT_TOKENS // BLOCK_SIZE))
    outfit = _outfit(Phase.DECODE, lambda lease_id: SequenceLease(lease_id, blocks, PROMPT_TOKENS - 1))
    return await _step_times(outfit, DecodeEngine(outfit), depth, num_steps)


async def _prefill_step(depth: int, num_steps: int) -> TimesUs:
    """At its bound of admitted prompts."""
    outfit = _outfit(Phase.PREFILL, new_lease)
    return await _step_times(outfit, PrefillEngine(outfit, lambda: CHUNK_TOKENS), depth, num_steps)


DECISIONS: Mapping[str, Callable[[int, int], Coroutine[Any, Any, TimesUs]]] = {
    **{f"gateway.next_request, {name}": partial(_next_request, name) for name in POLICIES},
    "prefill.step": _prefill_step,
    "decode.step": _decode_step,
}


def _outfit(phase: Phase, adopted: Callable[[int], SequenceLease]) -> Outfit:
    return make_outfit(phase, Blocks(LIMITS.num_pool_blocks, adopted), LIMITS, NUM_AHEAD_BLOCKS)


async def _step_times(outfit: Outfit, engine: PhaseEngine[Any, Any], depth: int, num_steps: int) -> TimesUs:
    """Of steps with `depth` sequences more than can run."""
    engine.start()
    session = engine.open_session()
    lease_ids = count()
    times_us: TimesUs = []
    for _ in range(NUM_UNCOUNTED + num_steps):
        for _ in range(depth + LIMITS.max_sequences - _num_sequences(engine)):
            engine.command(session, Submit(_spec(next(lease_ids))))
        await _settled(engine, depth + LIMITS.max_sequences)
        times_us.append(_step_us(engine))
    await outfit.crew.cancel()
    return times_us[NUM_UNCOUNTED:]


async def _settled(engine: PhaseEngine[Any, Any], num_sequences: int) -> None:
    """What was submitted waits, and blocks are at hand."""
    while _num_sequences(engine) < num_sequences or engine.load().num_spare_blocks < NUM_AHEAD_BLOCKS // 2:  # noqa: ASYNC110
        await asyncio.sleep(0)


def _num_sequences(engine: PhaseEngine[Any, Any]) -> int:
    load = engine.load()
    return load.num_waiting + load.num_running


def _step_us(engine: PhaseEngine[Any, Any]) -> float:
    started_s = time.perf_counter()
    parts = engine.prepare()
    engine.deliver()
    engine.finish([TOKEN if part.draw else None for part in parts])
    engine.load()
    return (time.perf_counter() - started_s) * US


def _spec(lease_id: int) -> SequenceSpec:
    """A prompt unlike all others, so that nothing is shared."""
    stop = StopSpec(max_tokens=1 + lease_id % MOST_OUTPUT_TOKENS)
    return SequenceSpec(
        lease_id=lease_id,
        request_id="",
        token_ids=(*divmod(lease_id, LIMITS.vocab_size), *(1,) * (PROMPT_TOKENS - 2)),
        num_prompt_tokens=PROMPT_TOKENS,
        sampling=SamplingSpec(),
        stop=stop,
        arrival_unix_ns=lease_id,
    )

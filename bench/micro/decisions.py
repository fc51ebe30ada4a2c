"""What a scheduler's decision costs, by how many wait."""

import time
from collections.abc import Callable, Mapping
from statistics import median

from bench.micro.table import DecisionCost
from tandem.scheduler.decode import BlockStock, DecodeCandidate, PoolState, plan_step
from tandem.scheduler.prefill import RunningPrompt, WaitingPrompt, admit, share_budget
from tandem.scheduler.waiting import FirstComeFirstServed, WaitingEntry, WaitingQueue

DEPTHS = (1, 10, 100, 1_000, 10_000)
NUM_RUNNING = 32
CHUNK_TOKENS = 512
NUM_REPEATS = 9
TARGET_S = 0.02  # of one repeat: short enough to be many, long enough for the clock
US = 1e6

Decision = Callable[[], object]


def measure_decisions() -> tuple[DecisionCost, ...]:
    """Every decision at every depth."""
    return tuple(
        DecisionCost(name, depth, _median_us(prepare(depth))) for name, prepare in DECISIONS.items() for depth in DEPTHS
    )


def _next_request(depth: int) -> Decision:
    """The gateway's queue: the first goes, another comes."""
    queue: WaitingQueue[int] = WaitingQueue(FirstComeFirstServed())
    for number in range(depth):
        queue.push(number, WaitingEntry(0, number, 0))
    arrivals = iter(range(depth, 1 << 62))

    def decide() -> None:
        queue.pop()
        number = next(arrivals)
        queue.push(number, WaitingEntry(0, number, 0))

    return decide


def _admission(depth: int) -> Decision:
    """Prefill, with no block to spare: it looks, and nobody goes in."""
    waiting = [WaitingPrompt(number, 0, number, 8) for number in range(depth)]
    return lambda: admit(waiting, num_places=NUM_RUNNING, num_spare_blocks=0)


def _budget(depth: int) -> Decision:
    """Prefill's chunks among the admitted."""
    running = [RunningPrompt(number, 0, number, 1_000) for number in range(depth)]
    return lambda: share_budget(running, CHUNK_TOKENS)


def _decode_step(depth: int) -> Decision:
    """Decode at its bound of running sequences, the others waiting to join."""
    running = [DecodeCandidate(number, 0, number, 10, 0) for number in range(NUM_RUNNING)]
    waiting = [DecodeCandidate(NUM_RUNNING + number, 0, NUM_RUNNING + number, 10, 0) for number in range(depth)]
    stock = BlockStock(num_spare_blocks=64, num_pool_blocks=1 << 20, pool=PoolState.OPEN)
    return lambda: plan_step(running, waiting, stock, NUM_RUNNING)


DECISIONS: Mapping[str, Callable[[int], Decision]] = {
    "gateway.next_request": _next_request,
    "prefill.admit": _admission,
    "prefill.share_budget": _budget,
    "decode.plan_step": _decode_step,
}


def _median_us(decide: Decision) -> float:
    decide()
    count = max(1, int(TARGET_S / max(_seconds(decide, 1), 1e-7)))
    return median(_seconds(decide, count) / count for _ in range(NUM_REPEATS)) * US


def _seconds(decide: Decision, count: int) -> float:
    started_s = time.perf_counter()
    for _ in range(count):
        decide()
    return time.perf_counter() - started_s

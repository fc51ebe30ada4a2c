import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.prefill.engine import PrefillEngine
from tandem.clock import ManualClock
from tandem.errors import StorageError
from tandem.phase.crew import Crew
from tandem.phase.session import Session
from tandem.types import (
    AbortSequence,
    DropReason,
    FinishReason,
    Phase,
    Prefilled,
    PrefillResult,
    SequenceDropped,
    SequenceSpec,
    Submit,
)
from tests.support.fake_model import BLOCK_SIZE, VOCAB_SIZE, Slots, next_token
from tests.support.fake_store import PREFILL_HOLDER, FakeStore
from tests.support.phase_fakes import Rig, make_rig, make_spec


@dataclass
class Bench:
    """A prefill engine; the test plays the gateway, which releases what has been dropped."""

    store: FakeStore
    slots: Slots
    rig: Rig
    engine: PrefillEngine
    crew: Crew
    session: Session[PrefillResult]
    prefilled: dict[int, Prefilled] = field(default_factory=dict)
    dropped: dict[int, SequenceDropped] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, spec: SequenceSpec) -> None:
        self.engine.command(self.session, Submit(spec))

    async def listen(self) -> None:
        async for result in self.session.results():
            for prefilled in result.prefilled:
                self.prefilled[prefilled.output.lease_id] = prefilled
                self.order.append(prefilled.output.lease_id)
            for dropped in result.dropped:
                self.dropped[dropped.lease_id] = dropped
                await self.store.release_sequences([dropped.lease_id])
            self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def chunk_sizes(self) -> list[list[int]]:
        return [[len(rows.token_ids) for rows in step] for step in self.rig.runner.steps]


@pytest.fixture
async def benches() -> AsyncIterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(num_blocks: int = 64, reserve_blocks: int = 0, chunk_tokens: int = 16, **options: Any) -> Bench:
        store, slots, crew = FakeStore(num_blocks, reserve_blocks), Slots(), Crew()
        rig = make_rig(Phase.PREFILL, store, slots, crew, **options)
        engine = PrefillEngine(rig.outfit, lambda: chunk_tokens)
        bench = Bench(store, slots, rig, engine, crew, engine.open_session())
        engine.start()
        crew.spawn(bench.listen())
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.rig.runner.gate.set()
        await bench.crew.cancel()


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 31 + i * 7) % VOCAB_SIZE for i in range(length)]


async def test_the_first_token_and_a_sealed_lease(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.submit(make_spec(1, prompt(1, 10)))
    await bench.until(lambda: 1 in bench.prefilled)
    assert bench.prefilled[1].output.token_id == next_token(prompt(1, 10))
    assert bench.prefilled[1].output.finish_reason is FinishReason.NONE
    assert bench.store.leases[1].num_sealed == 10
    assert len(bench.store.leases[1].blocks) == 3
    bench.store.check()


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 16, 64])
async def test_chunks_of_any_size_give_the_same_token(benches: Callable[..., Bench], chunk_tokens: int) -> None:
    bench = benches(chunk_tokens=chunk_tokens)
    lengths = {1: 1, 2: 17, 3: 30}
    for lease_id, length in lengths.items():
        bench.submit(make_spec(lease_id, prompt(lease_id, length)))
    await bench.until(lambda: len(bench.prefilled) == 3)
    assert {i: bench.prefilled[i].output.token_id for i in lengths} == {
        i: next_token(prompt(i, length)) for i, length in lengths.items()
    }
    assert all(sum(sizes) <= chunk_tokens for sizes in bench.chunk_sizes())
    assert sum(sum(sizes) for sizes in bench.chunk_sizes()) == sum(lengths.values())


async def test_short_prompts_share_a_step_and_the_first_finishes_first(benches: Callable[..., Bench]) -> None:
    bench = benches(ahead_blocks=20)
    bench.rig.runner.hold()
    bench.submit(make_spec(1, prompt(1, 4)))
    await bench.rig.runner.until_held()
    for lease_id, length in ((2, 5), (3, 5), (4, 20)):
        bench.submit(make_spec(lease_id, prompt(lease_id, length)))
    for _ in range(5):
        await asyncio.sleep(0)
    bench.rig.runner.gate.set()
    await bench.until(lambda: len(bench.prefilled) == 4)
    assert bench.order == [1, 2, 3, 4]
    assert bench.chunk_sizes()[:2] == [[4], [5, 5, 6]]


async def test_progress_is_sealed_at_chunk_borders(benches: Callable[..., Bench]) -> None:
    bench = benches(chunk_tokens=4, ahead_blocks=8)
    bench.submit(make_spec(1, prompt(1, 12)))
    await bench.until(lambda: 1 in bench.prefilled)
    sealed = [update.num_sealed_tokens for batch in bench.store.updates for update in batch if not update.let_go]
    assert sealed == sorted(sealed)
    assert sealed[-1] == 12
    assert len(sealed) > 1


async def test_nothing_is_said_before_memd_knows(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.store.update_gate.clear()
    bench.submit(make_spec(1, prompt(1, 6)))
    bench.submit(make_spec(2, prompt(2, 1000)))  # refused in a later message than the step's
    await bench.until(lambda: 2 in bench.dropped)
    await asyncio.wait_for(bench.rig.controller.stepped.wait(), 20)
    assert bench.prefilled == {}
    bench.store.update_gate.set()
    await bench.until(lambda: 1 in bench.prefilled)


async def test_a_fork_computes_only_what_is_not_shared(benches: Callable[..., Bench]) -> None:
    bench = benches()
    tokens = prompt(1, 10)
    bench.submit(make_spec(1, tokens))
    await bench.until(lambda: 1 in bench.prefilled)
    assert await bench.store.fork_sequence(1, 2, "request-1", len(tokens) - 1) == 8
    bench.submit(make_spec(2, tokens))
    await bench.until(lambda: 2 in bench.prefilled)
    assert bench.prefilled[2].output.token_id == bench.prefilled[1].output.token_id
    assert bench.prefilled[2].num_cached_tokens == 8
    assert bench.chunk_sizes() == [[10], [2]]
    assert bench.store.leases[2].blocks[:2] == bench.store.leases[1].blocks[:2]
    bench.store.check()


async def test_a_wholly_sealed_prompt_computes_its_last_token_for_the_logits(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.submit(make_spec(1, prompt(1, 8)))
    await bench.until(lambda: 1 in bench.prefilled)
    first = bench.prefilled.pop(1)
    bench.submit(make_spec(1, prompt(1, 8)))
    await bench.until(lambda: 1 in bench.prefilled)
    assert bench.prefilled[1].output == first.output
    assert bench.chunk_sizes() == [[8], [1]]


async def test_a_sequence_sent_again_goes_on_after_its_output(benches: Callable[..., Bench]) -> None:
    bench = benches()
    tokens = prompt(1, 6)
    output = [3, 1, 4]
    bench.submit(make_spec(1, tokens, output=output, max_tokens=4))
    await bench.until(lambda: 1 in bench.prefilled)
    assert bench.prefilled[1].output.token_id == next_token([*tokens, *output])
    assert bench.prefilled[1].output.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": 1}, FinishReason.LENGTH),
        ({"stop_token_ids": (next_token(prompt(1, 6)),)}, FinishReason.STOP),
        ({"stop_token_ids": (next_token(prompt(1, 6)),), "max_tokens": 1}, FinishReason.STOP),
        ({"stop_token_ids": (next_token(prompt(1, 6)),), "min_tokens": 1}, FinishReason.NONE),
    ],
)
async def test_the_first_token_may_end_the_sequence(
    benches: Callable[..., Bench], options: dict[str, Any], reason: FinishReason
) -> None:
    bench = benches()
    bench.submit(make_spec(1, prompt(1, 6), **options))
    await bench.until(lambda: 1 in bench.prefilled)
    assert bench.prefilled[1].output.finish_reason is reason


async def test_waiting_and_computing_are_measured_apart(benches: Callable[..., Bench]) -> None:
    clock = ManualClock()
    bench = benches(clock=clock)
    bench.store.acquire_gate.clear()
    bench.submit(make_spec(1, prompt(1, 6)))
    clock.advance(0.25)
    bench.rig.runner.hold()
    bench.store.acquire_gate.set()
    await bench.rig.runner.until_held()
    clock.advance(0.5)
    bench.rig.runner.gate.set()
    await bench.until(lambda: 1 in bench.prefilled)
    assert bench.prefilled[1].wait_ms == pytest.approx(250)
    assert bench.prefilled[1].compute_ms == pytest.approx(500)


async def test_a_prompt_waits_until_all_its_blocks_are_there(benches: Callable[..., Bench]) -> None:
    bench = benches(num_blocks=8, ahead_blocks=1)
    bench.submit(make_spec(1, prompt(1, 5 * BLOCK_SIZE)))
    await bench.until(lambda: 1 in bench.prefilled)
    short = asyncio.Event()
    bench.store.on_short = lambda holder_id, num_blocks: short.set()
    bench.submit(make_spec(2, prompt(2, 5 * BLOCK_SIZE)))
    await asyncio.wait_for(short.wait(), 10)
    assert 2 not in bench.prefilled
    await bench.store.release_sequences([1])
    await bench.until(lambda: 2 in bench.prefilled)
    bench.store.check()


async def test_a_prompt_that_would_need_the_reserve_fails_instead_of_waiting(benches: Callable[..., Bench]) -> None:
    bench = benches(num_blocks=8, reserve_blocks=4)
    bench.submit(make_spec(1, prompt(1, 4 * BLOCK_SIZE + 1)))
    bench.submit(make_spec(2, prompt(2, 4 * BLOCK_SIZE)))
    await bench.until(lambda: 1 in bench.dropped and 2 in bench.prefilled)
    assert bench.dropped[1].reason is DropReason.FAILED
    assert "5 blocks" in bench.dropped[1].message


async def test_leases_are_acquired_beside_a_step_and_beside_each_other(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.rig.runner.hold()
    bench.submit(make_spec(1, prompt(1, 6)))
    await bench.rig.runner.until_held()
    bench.submit(make_spec(2, prompt(2, 6)))
    bench.submit(make_spec(3, prompt(3, 6)))
    for _ in range(3):
        await asyncio.sleep(0)
    assert set(bench.store.leases) == {1, 2, 3}
    bench.rig.runner.gate.set()
    await bench.until(lambda: len(bench.prefilled) == 3)


async def test_an_abort_while_the_lease_is_asked_for(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.store.acquire_gate.clear()
    bench.submit(make_spec(1, prompt(1, 6)))
    bench.engine.command(bench.session, AbortSequence(1))
    await asyncio.sleep(0)
    assert bench.dropped == {}
    bench.store.acquire_gate.set()
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.ABORTED
    assert bench.store.leases == {}


async def test_an_abort_of_a_waiting_prompt(benches: Callable[..., Bench]) -> None:
    bench = benches(max_sequences=1)
    bench.rig.runner.hold()
    bench.submit(make_spec(1, prompt(1, 6)))
    await bench.rig.runner.until_held()
    bench.submit(make_spec(2, prompt(2, 6)))
    for _ in range(3):
        await asyncio.sleep(0)
    bench.engine.command(bench.session, AbortSequence(2))
    bench.rig.runner.gate.set()
    await bench.until(lambda: 1 in bench.prefilled and 2 in bench.dropped)
    assert bench.chunk_sizes() == [[6]]


async def test_an_abort_between_chunks_frees_every_block(benches: Callable[..., Bench]) -> None:
    bench = benches(chunk_tokens=4)
    bench.rig.runner.hold()
    bench.submit(make_spec(1, prompt(1, 40)))
    await bench.rig.runner.until_held()
    bench.engine.command(bench.session, AbortSequence(1))
    bench.rig.runner.gate.set()
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.chunk_sizes() == [[4]]
    assert bench.store.leases == {}
    bench.store.check()


async def test_an_abort_while_memd_is_being_told(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.store.update_gate.clear()
    bench.submit(make_spec(1, prompt(1, 6)))
    await asyncio.wait_for(bench.rig.controller.stepped.wait(), 20)
    bench.engine.command(bench.session, AbortSequence(1))
    await bench.until(lambda: 1 in bench.dropped)
    bench.store.update_gate.set()
    bench.submit(make_spec(2, prompt(2, 6)))
    await bench.until(lambda: 2 in bench.prefilled)
    assert 1 not in bench.prefilled
    bench.store.check()


async def test_a_lease_lost_before_the_token_is_said(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.store.update_gate.clear()
    bench.submit(make_spec(1, prompt(1, 6)))
    await asyncio.wait_for(bench.rig.controller.stepped.wait(), 20)
    await bench.store.release_sequences([1])
    bench.store.update_gate.set()
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.LEASE_LOST
    assert bench.prefilled == {}
    bench.store.check()
    assert len(bench.store.spare[PREFILL_HOLDER]) + len(bench.store.free) == bench.store.num_blocks


async def test_memd_refusing_the_lease(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.store.acquire_error = StorageError("no more leases")
    bench.submit(make_spec(1, prompt(1, 6)))
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.FAILED


async def test_a_failing_step_drops_its_prompts_and_the_next_works(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.rig.runner.failures = [RuntimeError("out of luck")]
    bench.submit(make_spec(1, prompt(1, 6)))
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.FAILED
    bench.submit(make_spec(2, prompt(2, 6)))
    await bench.until(lambda: 2 in bench.prefilled)
    bench.store.check()


async def test_the_end_of_the_stream_lets_everything_go(benches: Callable[..., Bench]) -> None:
    bench = benches(chunk_tokens=4)
    other = bench.engine.open_session()
    bench.rig.runner.hold()
    bench.engine.command(other, Submit(make_spec(9, prompt(9, 40))))
    await bench.rig.runner.until_held()
    bench.engine.close_session(other)
    bench.submit(make_spec(1, prompt(1, 4)))
    bench.rig.runner.gate.set()
    await bench.until(lambda: 1 in bench.prefilled)
    assert [sum(sizes) for sizes in bench.chunk_sizes()] == [4, 4]
    await bench.engine.drain(10)


async def test_a_drain_hands_back_what_waits(benches: Callable[..., Bench]) -> None:
    bench = benches(num_blocks=4)
    bench.submit(make_spec(1, prompt(1, 4 * BLOCK_SIZE)))
    await bench.until(lambda: 1 in bench.prefilled)
    bench.submit(make_spec(2, prompt(2, 4 * BLOCK_SIZE)))
    await bench.engine.drain(0.02)
    await bench.until(lambda: 2 in bench.dropped)
    assert bench.dropped[2].reason is DropReason.DRAINING


async def test_a_reclaim_gives_all_spare_blocks_back(benches: Callable[..., Bench]) -> None:
    bench = benches(num_blocks=16, ahead_blocks=8)
    bench.submit(make_spec(1, prompt(1, 6)))
    await bench.until(lambda: 1 in bench.prefilled)
    await bench.engine.reclaim(100)
    assert bench.store.spare[PREFILL_HOLDER] == set()

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.decode.engine import BARREN_AFTER_S, DecodeEngine
from tandem.clock import ManualClock
from tandem.errors import DeviceError, DuplicateRequestError, NotReadyError, StorageError
from tandem.kv.store import SequenceUpdate
from tandem.model.batch import SequenceRows
from tandem.phase.crew import Crew
from tandem.phase.session import Session
from tandem.types import (
    AbortSequence,
    DecodeResult,
    DropReason,
    FinishReason,
    Phase,
    SequenceDropped,
    SequenceSpec,
    Split,
    Submit,
)
from tests.support.phase_fakes import (
    BLOCK_SIZE,
    DECODE_HOLDER,
    PREFILL_HOLDER,
    VOCAB_SIZE,
    FakeStore,
    Rig,
    Slots,
    continuation,
    make_rig,
    make_spec,
    next_token,
)


@dataclass
class Bench:
    """A decode engine, and prefill and the gateway played by the test."""

    store: FakeStore
    slots: Slots
    rig: Rig
    engine: DecodeEngine
    crew: Crew
    session: Session[DecodeResult]
    outputs: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, FinishReason] = field(default_factory=dict)
    dropped: dict[int, SequenceDropped] = field(default_factory=dict)
    messages: list[DecodeResult] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def prefill(self, spec: SequenceSpec, num_sealed: int | None = None) -> None:
        """What prefill leaves in memd and in the KV memory: everything before the last token."""
        num_tokens = len(spec.token_ids) - 1 if num_sealed is None else num_sealed
        await self.store.acquire_sequence(PREFILL_HOLDER, spec.lease_id, spec.request_id, create=True)
        num_blocks = -(-(len(spec.token_ids) - 1) // BLOCK_SIZE)
        blocks = await self.store.lease_blocks(PREFILL_HOLDER, num_blocks)
        assert len(blocks) == num_blocks
        await self.store.update_sequences(PREFILL_HOLDER, [SequenceUpdate(spec.lease_id, blocks, num_tokens)])
        self.slots.write(SequenceRows(spec.token_ids[:num_tokens], 0, [block.block_id for block in blocks]))

    async def submit(self, spec: SequenceSpec) -> None:
        await self.prefill(spec)
        self.engine.command(self.session, Submit(spec))

    async def listen(self) -> None:
        async for result in self.session.results():
            self.messages.append(result)
            for output in result.outputs:
                self.outputs.setdefault(output.lease_id, []).append(output.token_id)
                if output.finish_reason is not FinishReason.NONE:
                    self.finished[output.lease_id] = output.finish_reason
                    await self.store.release_sequences([output.lease_id])
            for dropped in result.dropped:
                self.dropped[dropped.lease_id] = dropped
                await self.store.release_sequences([dropped.lease_id])
            self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def make_bench(num_blocks: int, **options: Any) -> Bench:
    store, slots, crew = FakeStore(num_blocks), Slots(), Crew()
    rig = make_rig(Phase.DECODE, store, slots, crew, **options)
    engine = DecodeEngine(rig.outfit)
    bench = Bench(store, slots, rig, engine, crew, engine.open_session())
    engine.start()
    crew.spawn(bench.listen())
    return bench


@pytest.fixture
async def benches() -> AsyncIterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(num_blocks: int = 64, **options: Any) -> Bench:
        made.append(make_bench(num_blocks, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.rig.runner.gate.set()
        await bench.crew.cancel()


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 31 + i * 7) % VOCAB_SIZE for i in range(length)]


def handed_over(lease_id: int, tokens: Sequence[int], **options: Any) -> SequenceSpec:
    """The prompt and prefill's token."""
    return make_spec(lease_id, tokens, output=[next_token(tokens)], **options)


async def test_a_sequence_goes_on_from_prefills_token_to_its_length(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await bench.submit(handed_over(1, prompt(1, 10), max_tokens=9))
    await bench.until(lambda: 1 in bench.finished)
    assert bench.outputs[1] == continuation(prompt(1, 10), 9)[1:]
    assert bench.finished[1] is FinishReason.LENGTH


async def test_sequences_join_and_leave_at_every_step_and_stay_right(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.rig.runner.hold()
    await bench.submit(handed_over(1, prompt(1, 3), max_tokens=12))
    await bench.rig.runner.until_held()
    for lease_id, length in ((2, 9), (3, 5)):
        await bench.submit(handed_over(lease_id, prompt(lease_id, length), max_tokens=lease_id + 2))
    bench.rig.runner.gate.set()
    await bench.until(lambda: len(bench.finished) == 3)
    for lease_id, length, max_tokens in ((1, 3, 12), (2, 9, 4), (3, 5, 5)):
        assert bench.outputs[lease_id] == continuation(prompt(lease_id, length), max_tokens)[1:]
    batch_sizes = [len(step) for step in bench.rig.runner.steps]
    assert batch_sizes[0] == 1
    assert max(batch_sizes) == 3
    assert batch_sizes[-1] == 1


async def test_a_step_is_one_message_and_one_row_a_sequence(benches: Callable[..., Bench]) -> None:
    bench = benches()
    for lease_id in (1, 2):
        await bench.prefill(handed_over(lease_id, prompt(lease_id, 6), max_tokens=4))
    for lease_id in (1, 2):
        bench.engine.command(bench.session, Submit(handed_over(lease_id, prompt(lease_id, 6), max_tokens=4)))
    await bench.until(lambda: len(bench.finished) == 2)
    assert [[len(rows.token_ids) for rows in step] for step in bench.rig.runner.steps] == [[1, 1]] * 3
    assert [len(message.outputs) for message in bench.messages] == [2, 2, 2]


async def test_tokens_that_were_never_sealed_are_computed_in_the_joining_step(benches: Callable[..., Bench]) -> None:
    bench = benches()
    spec = handed_over(1, prompt(1, 10), max_tokens=5)
    await bench.prefill(spec, num_sealed=4)
    bench.engine.command(bench.session, Submit(spec))
    await bench.until(lambda: 1 in bench.finished)
    assert [len(step[0].token_ids) for step in bench.rig.runner.steps] == [7, 1, 1, 1]
    assert bench.outputs[1] == continuation(prompt(1, 10), 5)[1:]


async def test_a_stop_token_ends_the_sequence(benches: Callable[..., Bench]) -> None:
    tokens = continuation(prompt(1, 6), 20)
    bench = benches()
    await bench.submit(handed_over(1, prompt(1, 6), max_tokens=20, stop_token_ids=(tokens[5],)))
    await bench.until(lambda: 1 in bench.finished)
    assert bench.finished[1] is FinishReason.STOP
    assert bench.outputs[1] == tokens[1 : tokens.index(tokens[5], 1) + 1]


async def test_no_stop_token_is_drawn_before_min_tokens(benches: Callable[..., Bench]) -> None:
    every_token = tuple(range(VOCAB_SIZE))
    second = continuation(prompt(1, 6), 2)[1]
    bench = benches()
    spec = make_spec(
        1, prompt(1, 6), output=[next_token(prompt(1, 6))], max_tokens=20, min_tokens=2, stop_token_ids=(second,)
    )
    await bench.submit(spec)
    await bench.until(lambda: 1 in bench.outputs)
    assert bench.outputs[1][0] == (second + 1) % VOCAB_SIZE
    late = make_spec(
        2, prompt(2, 6), output=[next_token(prompt(2, 6))], max_tokens=20, min_tokens=1, stop_token_ids=every_token
    )
    await bench.submit(late)
    await bench.until(lambda: 2 in bench.finished)
    assert len(bench.outputs[2]) == 1
    assert bench.finished[2] is FinishReason.STOP


async def test_the_contexts_end_is_an_end(benches: Callable[..., Bench]) -> None:
    bench = benches(max_context_tokens=12)
    await bench.submit(handed_over(1, prompt(1, 8), max_tokens=50))
    await bench.until(lambda: 1 in bench.finished)
    assert bench.finished[1] is FinishReason.LENGTH
    assert 8 + 1 + len(bench.outputs[1]) == 12


async def test_what_is_appended_is_sealed_block_by_block(benches: Callable[..., Bench]) -> None:
    bench = benches()
    spec = handed_over(1, prompt(1, 7), max_tokens=12)
    await bench.submit(spec)
    await bench.until(lambda: len(bench.outputs.get(1, [])) >= 10)
    sealed = [u.num_sealed_tokens for batch in bench.store.updates[1:] for u in batch if u.lease_id == 1]
    assert sealed == sorted(sealed)
    assert {8, 12} <= set(sealed)


async def test_an_abort_is_honoured_within_one_step(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.rig.runner.hold()
    await bench.submit(handed_over(1, prompt(1, 6), max_tokens=500))
    await bench.rig.runner.until_held()
    bench.engine.command(bench.session, AbortSequence(1))
    bench.rig.runner.gate.set()
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.ABORTED
    assert len(bench.rig.runner.steps) == 1
    assert 1 not in bench.outputs


async def test_an_abort_while_the_lease_is_asked_for_is_answered_after_the_answer(
    benches: Callable[..., Bench],
) -> None:
    bench = benches()
    spec = handed_over(1, prompt(1, 6))
    await bench.prefill(spec)
    bench.store.acquire_gate.clear()
    bench.engine.command(bench.session, Submit(spec))
    await asyncio.sleep(0)
    bench.engine.command(bench.session, AbortSequence(1))
    await asyncio.sleep(0)
    assert bench.dropped == {}
    bench.store.acquire_gate.set()
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.ABORTED
    assert bench.rig.runner.steps == []


async def test_an_abort_of_a_waiting_sequence(benches: Callable[..., Bench]) -> None:
    bench = benches(max_sequences=1)
    bench.rig.runner.hold()
    await bench.submit(handed_over(1, prompt(1, 6), max_tokens=3))
    await bench.rig.runner.until_held()
    await bench.submit(handed_over(2, prompt(2, 6), max_tokens=3))
    await asyncio.sleep(0)
    bench.engine.command(bench.session, AbortSequence(2))
    bench.rig.runner.gate.set()
    await bench.until(lambda: len(bench.finished) + len(bench.dropped) == 2)
    assert bench.dropped[2].reason is DropReason.ABORTED
    assert bench.outputs[1] == continuation(prompt(1, 6), 3)[1:]


async def test_an_abort_of_what_has_ended_is_passed_over(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await bench.submit(handed_over(1, prompt(1, 6), max_tokens=2))
    await bench.until(lambda: 1 in bench.finished)
    bench.engine.command(bench.session, AbortSequence(1))
    await bench.submit(handed_over(2, prompt(2, 6), max_tokens=2))
    await bench.until(lambda: 2 in bench.finished)
    assert bench.dropped == {}


async def test_a_lease_that_memd_does_not_know_is_lost(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.engine.command(bench.session, Submit(handed_over(1, prompt(1, 6))))
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.LEASE_LOST


async def test_memd_refusing_the_lease(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.store.acquire_error = StorageError("no")
    bench.engine.command(bench.session, Submit(handed_over(1, prompt(1, 6))))
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.FAILED
    assert "no" in bench.dropped[1].message


async def test_a_sequence_waits_for_a_memd_that_is_away(benches: Callable[..., Bench]) -> None:
    bench, spec = benches(), handed_over(1, prompt(1, 6), max_tokens=3)
    await bench.prefill(spec)
    bench.store.acquire_error = NotReadyError("away")
    bench.engine.command(bench.session, Submit(spec))
    for _ in range(5):
        await asyncio.sleep(0)
    bench.store.acquire_error = None
    await bench.until(lambda: 1 in bench.finished)
    assert bench.dropped == {}


async def test_a_lease_lost_under_way_drops_the_sequence_and_keeps_its_new_blocks_spare(
    benches: Callable[..., Bench],
) -> None:
    bench = benches()
    await bench.submit(handed_over(1, prompt(1, 6), max_tokens=500))
    await bench.until(lambda: len(bench.outputs.get(1, [])) >= 2)
    await bench.store.release_sequences([1])
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.LEASE_LOST
    bench.store.check()
    assert len(bench.store.spare[DECODE_HOLDER]) >= 1


async def test_the_end_of_a_stream_lets_go_of_its_sequences_only(benches: Callable[..., Bench]) -> None:
    bench = benches()
    other = bench.engine.open_session()
    gone = handed_over(2, prompt(2, 6), max_tokens=900)
    await bench.prefill(gone)
    bench.rig.runner.hold()
    bench.engine.command(other, Submit(gone))
    await bench.rig.runner.until_held()
    await bench.submit(handed_over(1, prompt(1, 6), max_tokens=6))
    bench.engine.close_session(other)
    bench.rig.runner.gate.set()
    await bench.until(lambda: 1 in bench.finished)
    assert bench.outputs == {1: continuation(prompt(1, 6), 6)[1:]}
    assert [result async for result in other.results()] == []
    assert all(len(step) == 1 for step in bench.rig.runner.steps)


async def test_a_failing_step_costs_its_sequences_only(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.rig.runner.failures = [RuntimeError("out of luck")]
    await bench.submit(handed_over(1, prompt(1, 6)))
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.FAILED
    assert "out of luck" in bench.dropped[1].message
    await bench.submit(handed_over(2, prompt(2, 6), max_tokens=4))
    await bench.until(lambda: 2 in bench.finished)
    assert bench.outputs[2] == continuation(prompt(2, 6), 4)[1:]


async def test_three_failing_steps_in_a_row_end_the_phase(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.rig.runner.failures = [RuntimeError("broken")] * 3
    for lease_id in (1, 2, 3):
        await bench.prefill(handed_over(lease_id, prompt(lease_id, 6)))
    failure = asyncio.create_task(bench.crew.failure())
    for lease_id in (1, 2, 3):
        bench.engine.command(bench.session, Submit(handed_over(lease_id, prompt(lease_id, 6))))
        if lease_id < 3:
            await bench.until(lambda lease_id=lease_id: lease_id in bench.dropped)  # type: ignore[misc]
    with pytest.raises(DeviceError, match="broken"):
        await failure


@pytest.mark.parametrize(
    "spec",
    [
        make_spec(1, []),
        make_spec(1, [VOCAB_SIZE]),
        make_spec(1, [1] * 1000),
        make_spec(1, [1] * 300),
    ],
    ids=["no prompt", "token outside the vocabulary", "longer than the context", "larger than the pool"],
)
async def test_a_sequence_that_cannot_be_worked_on_fails_alone(
    benches: Callable[..., Bench], spec: SequenceSpec
) -> None:
    bench = benches()
    bench.engine.command(bench.session, Submit(spec))
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.FAILED
    assert bench.dropped[1].message


async def test_a_lease_that_is_being_worked_on_is_refused(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.rig.runner.hold()
    await bench.submit(handed_over(1, prompt(1, 6)))
    await bench.rig.runner.until_held()
    with pytest.raises(DuplicateRequestError):
        bench.engine.command(bench.session, Submit(handed_over(1, prompt(1, 6))))


async def test_the_latest_is_preempted_when_the_pool_is_dry_and_the_others_go_on(
    benches: Callable[..., Bench],
) -> None:
    bench = benches(num_blocks=8, ahead_blocks=1)
    for lease_id in (1, 2):
        await bench.prefill(handed_over(lease_id, prompt(lease_id, 7)))
    for lease_id in (1, 2):
        spec = handed_over(lease_id, prompt(lease_id, 7), max_tokens=20)
        bench.engine.command(bench.session, Submit(spec))
    await bench.until(lambda: 1 in bench.finished)
    assert bench.dropped[2].reason is DropReason.PREEMPTED
    assert bench.outputs[1] == continuation(prompt(1, 7), 20)[1:]
    assert bench.rig.metrics.preemptions._value.get() == 1
    await bench.until(lambda: bench.store.leases == {})
    bench.store.check()


async def test_a_priority_outlives_an_earlier_arrival(benches: Callable[..., Bench]) -> None:
    bench = benches(num_blocks=8, ahead_blocks=1)
    specs = [
        handed_over(1, prompt(1, 7), max_tokens=20, priority=0),
        handed_over(2, prompt(2, 7), max_tokens=20, priority=1),
    ]
    for spec in specs:
        await bench.prefill(spec)
    for spec in specs:
        bench.engine.command(bench.session, Submit(spec))
    await bench.until(lambda: 2 in bench.finished)
    assert bench.dropped[1].reason is DropReason.PREEMPTED


async def test_the_only_sequence_waits_for_blocks_and_goes_when_none_come_for_a_while(
    benches: Callable[..., Bench],
) -> None:
    clock = ManualClock()
    bench = benches(num_blocks=16, ahead_blocks=1, clock=clock)
    await bench.prefill(handed_over(1, prompt(1, 8)))
    bench.store.free.clear()  # somebody else has them
    bench.engine.command(bench.session, Submit(handed_over(1, prompt(1, 8), max_tokens=30)))
    bench.store.on_short = lambda holder_id, num_blocks: bench.changed.set()
    await bench.until(lambda: bench.store.num_lease_calls >= 6)
    num_tokens = len(bench.outputs.get(1, []))
    assert bench.dropped == {}
    clock.advance(BARREN_AFTER_S)
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.PREEMPTED
    assert bench.outputs.get(1, []) == continuation(prompt(1, 8), num_tokens + 1)[1:]


async def test_a_sequence_that_outgrows_the_whole_pool_fails(benches: Callable[..., Bench]) -> None:
    bench = benches(num_blocks=4, ahead_blocks=1)
    await bench.submit(handed_over(1, prompt(1, 8), max_tokens=100))
    await bench.until(lambda: 1 in bench.dropped)
    assert bench.dropped[1].reason is DropReason.FAILED
    assert "4 blocks" in bench.dropped[1].message


async def test_a_drain_finishes_what_it_can(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.rig.runner.hold()
    await bench.submit(handed_over(1, prompt(1, 6), max_tokens=6))
    await bench.rig.runner.until_held()
    draining = asyncio.create_task(bench.engine.drain(20))
    await asyncio.sleep(0)
    bench.engine.command(bench.session, Submit(handed_over(2, prompt(2, 6))))
    bench.rig.runner.gate.set()
    await draining
    await bench.until(lambda: 1 in bench.finished and 2 in bench.dropped)
    assert bench.dropped[2].reason is DropReason.DRAINING
    assert bench.outputs[1] == continuation(prompt(1, 6), 6)[1:]


async def test_a_drain_hands_back_what_it_cannot_finish_and_ends_the_stream(benches: Callable[..., Bench]) -> None:
    bench = benches(max_sequences=1)
    await bench.submit(handed_over(1, prompt(1, 6), max_tokens=900))
    await bench.submit(handed_over(2, prompt(2, 6), max_tokens=900))
    await bench.until(lambda: 1 in bench.outputs)
    await bench.engine.drain(0.001)
    await bench.until(lambda: len(bench.dropped) == 2)
    assert {dropped.reason for dropped in bench.dropped.values()} == {DropReason.DRAINING}


async def test_an_assignment_is_applied_between_steps_in_the_steps_thread(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.rig.controller.assignments.append((3, Split(40, 60)))
    await asyncio.wait_for(bench.rig.controller.told.wait(), 10)
    ((decision_id, detail),) = bench.rig.controller.applied
    assert decision_id == 3
    assert detail.startswith("decode 40/60 on step")


async def test_each_step_is_reported(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await bench.submit(handed_over(1, prompt(1, 6), max_tokens=3))
    await bench.until(lambda: 1 in bench.finished)
    first, second = bench.rig.controller.steps
    assert (first.num_sequences, first.num_tokens, first.num_context_tokens) == (1, 1, 7)
    assert second.num_context_tokens == 8
    assert first.unix_ns == 7


async def test_no_step_awaits_memd(benches: Callable[..., Bench]) -> None:
    bench = benches(ahead_blocks=8)
    spec = handed_over(1, prompt(1, 6), max_tokens=12)
    await bench.prefill(spec)
    bench.store.update_gate.clear()
    bench.engine.command(bench.session, Submit(spec))
    await bench.until(lambda: 1 in bench.finished)
    assert bench.outputs[1] == continuation(prompt(1, 6), 12)[1:]

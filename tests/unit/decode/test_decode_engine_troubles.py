"""The decode engine where something goes wrong or short: streams, steps, blocks, and its own end."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from services.decode.engine import BARREN_AFTER_S
from tandem.clock import ManualClock
from tandem.errors import DeviceError, DuplicateRequestError
from tandem.types import DropReason, SequenceSpec, Split, Submit
from tests.support.decode_bench import Bench, decode_benches, handed_over, prompt
from tests.support.fake_model import VOCAB_SIZE, continuation
from tests.support.phase_fakes import make_spec


@pytest.fixture
async def benches() -> AsyncIterator[Callable[..., Bench]]:
    async with decode_benches() as make:
        yield make


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

"""The decode engine, step by step: joining, drawing, ending, and the leases of what it has."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from tandem.errors import NotReadyError, StorageError
from tandem.types import AbortSequence, DropReason, FinishReason, Submit
from tests.support.decode_bench import Bench, decode_benches, handed_over, prompt
from tests.support.fake_model import VOCAB_SIZE, continuation, next_token
from tests.support.fake_store import DECODE_HOLDER
from tests.support.phase_fakes import make_spec


@pytest.fixture
async def benches() -> AsyncIterator[Callable[..., Bench]]:
    async with decode_benches() as make:
        yield make


async def test_a_sequence_goes_on_from_prefills_token_to_its_length(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await bench.submit(handed_over(1, prompt(1, 10), max_tokens=9))
    await bench.until(lambda: 1 in bench.finished)
    assert bench.outputs[1] == continuation(prompt(1, 10), 9)[1:]
    assert bench.finished[1] is FinishReason.LENGTH


@pytest.mark.parametrize(("num_publishable", "published"), [(None, [2, 3, 4]), (6, []), (17, [2, 3])])
async def test_answers_are_published_as_far_as_their_kv_is_exact(
    benches: Callable[..., Bench], num_publishable: int | None, published: list[int]
) -> None:
    bench = benches()
    spec = handed_over(1, prompt(1, 10), max_tokens=13)
    await bench.submit(replace(spec, cache_namespace=b"n" * 32, num_publishable_tokens=num_publishable))
    await bench.until(lambda: 1 in bench.finished)
    updates = [update for batch in bench.store.updates for update in batch]
    assert [block.ordinal for update in updates for block in update.publish] == published


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

"""How requests end before their time: cancelled, late, aborted, unread, drained."""

import asyncio

import pytest

from tandem.errors import (
    DeadlineError,
    NotFoundError,
    NotReadyError,
    SlowReaderError,
)
from tandem.types import FinishReason, Phase
from tests.support.gateway_fakes import Rig, read_all, rig_with, running, settle, text_of, tokens_of

STOP, LENGTH, ABORT = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT
PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
A, B, C = b"abc"


@pytest.fixture
async def rig() -> Rig:
    return await Rig().up()


STATES = ("queued", "prefilling", "prefilled", "decoding")


@pytest.mark.parametrize("state", STATES)
async def test_cancelling_frees_everything_in_every_state(rig, state):
    request = await running(rig, state)
    rig.gateway.frontend.cancel(request)
    if state in ("prefilling", "decoding"):
        held = rig.phase(PREFILL if state == "prefilling" else DECODE)
        assert held.aborted == list(held.held), "the phase is told at once"
    await rig.assert_all_released()
    assert rig.observations.seen[-1].ok is False


@pytest.mark.parametrize("state", STATES)
async def test_a_deadline_ends_the_request_in_every_state(rig, state):
    request = await running(rig, state, remaining_s=5.0)
    rig.timers.advance(4.9)
    assert request.unfinished
    rig.timers.advance(0.2)
    with pytest.raises(DeadlineError):
        await read_all(request)
    await rig.assert_all_released()


async def test_a_deadline_that_has_passed_is_refused(rig):
    with pytest.raises(DeadlineError):
        await rig.request(remaining_s=0.0)
    assert rig.prefill.submitted == []
    await rig.assert_all_released()


@pytest.mark.parametrize("state", STATES)
async def test_abort_ends_the_stream_in_every_state(rig, state):
    request = await running(rig, state, request_id="r", stop=("bx",))
    rig.gateway.reception.abort("r")
    pieces = await read_all(request)
    assert pieces[-1].finish_reason is ABORT
    assert text_of(pieces) == {"decoding": "ab", "prefilled": "a"}.get(state, "")
    assert pieces[-1].usage.num_output_tokens == len(tokens_of(pieces))
    await rig.assert_all_released()


async def test_abort_of_what_does_not_run(rig):
    with pytest.raises(NotFoundError):
        rig.gateway.reception.abort("nobody")


async def test_an_abort_that_crosses_the_end_of_prefill(rig):
    request = await rig.request()
    rig.gateway.frontend.cancel(request)
    rig.prefilled(A)
    assert rig.decode.submitted == []
    await rig.assert_all_released()


async def test_an_abort_that_crosses_the_loss_of_the_phase(rig):
    request = await running(rig, "decoding")
    rig.gateway.frontend.cancel(request)
    rig.lose(DECODE)
    await rig.assert_all_released()


async def test_a_reader_that_stands_still_is_ended_and_no_other():
    rig = await rig_with(max_buffered_tokens=3)
    silent = await rig.request("silent")
    reader = await rig.request("reader", max_tokens=6)
    specs = [rig.prefilled(A), rig.prefilled(A)]
    for _ in range(4):
        for spec in specs:
            if spec.lease_id in rig.decode.held:
                rig.token(B, lease_id=spec.lease_id)
        await reader.output.get()
    assert rig.decode.aborted[0] == specs[0].lease_id
    with pytest.raises(SlowReaderError):
        await silent.output.get()
    rig.obey_aborts()
    rig.token(C, LENGTH)
    assert text_of(await read_all(reader)).endswith("c")
    await rig.assert_all_released()


async def test_draining_finishes_what_runs(rig):
    request = await rig.request(max_tokens=2)
    drained = await start_drain(rig, 60.0)
    with pytest.raises(NotReadyError):
        await rig.request()
    rig.prefilled(A)
    assert not drained.done()
    rig.token(B, LENGTH)
    await drained
    assert text_of(await read_all(request)) == "ab"
    await rig.assert_all_released()


async def test_draining_ends_what_takes_too_long(rig):
    request = await rig.request()
    rig.prefilled(A)
    drained = await start_drain(rig, 0.01)
    with pytest.raises(NotReadyError):
        await read_all(request)
    assert not drained.done(), "decode has not let go"
    rig.obey_aborts()
    await drained
    await rig.assert_all_released()


async def start_drain(rig, timeout_s):
    drained = asyncio.ensure_future(rig.gateway.reception.drain(timeout_s))
    await settle()
    return drained

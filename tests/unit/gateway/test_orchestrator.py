"""The way of sequences, against phases and a store that do exactly what the test says."""

import asyncio

import pytest

from tandem.config.settings import GatewayConfig
from tandem.errors import (
    DeadlineError,
    DuplicateRequestError,
    NotFoundError,
    NotReadyError,
    QueueFullError,
    SequenceFailedError,
    SlowReaderError,
    TandemError,
)
from tandem.types import DropReason, FinishReason, Phase
from tests.support.gateway_fakes import EOS, Rig, read_all, settle, text_of, tokens_of

STOP, LENGTH, ABORT = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT
PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
A, B, C = b"abc"


@pytest.fixture
async def rig() -> Rig:
    return await Rig().up()


async def rig_with(**settings: int) -> Rig:
    return await Rig(config=GatewayConfig(**settings)).up()


async def running(rig: Rig, state: str, **kwargs):
    """A request whose only sequence is in the state named."""
    if state == "queued":
        rig.prefill.connected = False
    request = await rig.request(max_tokens=8, **kwargs)
    if state == "prefilled":
        rig.lose(DECODE)
    if state in ("prefilled", "decoding"):
        rig.prefilled(A)
    if state == "decoding":
        rig.token(B)
    assert request.sequences[0].state.name.lower() == state
    return request


STATES = ("queued", "prefilling", "prefilled", "decoding")


async def test_a_request_goes_through_both_phases(rig):
    request = await rig.request("hello", max_tokens=3)
    assert [spec.token_ids for spec in rig.prefill.submitted] == [tuple(b"hello")]
    spec = rig.prefilled(A)
    assert rig.decode.submitted[0].lease_id == spec.lease_id
    assert rig.decode.submitted[0].token_ids == (*b"hello", A)
    assert rig.decode.submitted[0].num_prompt_tokens == 5
    rig.token(B)
    rig.token(C, LENGTH)
    pieces = await read_all(request)
    assert text_of(pieces) == "abc"
    assert pieces[-1].finish_reason is LENGTH
    assert (pieces[-1].usage.num_prompt_tokens, pieces[-1].usage.num_output_tokens) == (5, 3)
    await rig.assert_all_released()


async def test_the_end_of_sequence_token_is_a_token_without_text(rig):
    request = await rig.request(stop_token_ids=(C,))
    assert rig.prefill.submitted[0].stop.stop_token_ids == (C, EOS)
    rig.prefilled(A)
    rig.token(EOS, STOP)
    pieces = await read_all(request)
    assert (text_of(pieces), tokens_of(pieces), pieces[-1].matched_stop) == ("a", [A, EOS], "")
    await rig.assert_all_released()


async def test_a_stop_token_of_the_client_is_named(rig):
    request = await rig.request(stop_token_ids=(C,), ignore_eos=True)
    assert rig.prefill.submitted[0].stop.stop_token_ids == (C,)
    rig.prefilled(C, STOP)
    pieces = await read_all(request)
    assert (text_of(pieces), tokens_of(pieces), pieces[-1].matched_stop) == ("", [C], str(C))
    assert rig.decode.submitted == []
    await rig.assert_all_released()


async def test_a_stop_string_ends_the_sequence_in_its_phase(rig):
    request = await rig.request(stop=("bc",))
    spec = rig.prefilled(A)
    rig.token(B)
    rig.token(C)
    assert rig.decode.aborted == [spec.lease_id]
    rig.token(A)  # decode was a step ahead
    pieces = await read_all(request)
    assert (text_of(pieces), tokens_of(pieces)) == ("a", [A, B, C])
    assert (pieces[-1].finish_reason, pieces[-1].matched_stop) == (STOP, "bc")
    assert rig.store.leases == {spec.lease_id}, "decode has it still"
    await rig.assert_all_released()


async def test_text_held_back_for_a_stop_string_comes_at_the_end(rig):
    request = await rig.request(stop=("abx",), max_tokens=2)
    rig.prefilled(A)
    rig.token(B, LENGTH)
    pieces = await read_all(request)
    assert [piece.text_delta for piece in pieces] == ["ab"]
    assert pieces[-1].finish_reason is LENGTH


@pytest.mark.parametrize("reason", [DropReason.PREEMPTED, DropReason.LEASE_LOST])
async def test_a_dropped_sequence_goes_on_where_it_was(rig, reason):
    request = await rig.request("hello", max_tokens=4, seed=5)
    first = rig.prefilled(A)
    rig.token(B)
    rig.drop(DECODE, reason)
    again = rig.prefill.submitted[-1]
    assert again.lease_id != first.lease_id
    assert again.token_ids == (*b"hello", A, B)
    assert again.num_prompt_tokens == 5
    assert (again.sampling, again.stop) == (first.sampling, first.stop)
    rig.prefilled(C)
    rig.token(A, LENGTH)
    pieces = await read_all(request)
    assert (text_of(pieces), tokens_of(pieces)) == ("abca", [A, B, C, A])
    assert pieces[-1].usage.num_output_tokens == 4
    await rig.assert_all_released()


async def test_nothing_is_sent_to_a_phase_that_hands_back(rig):
    request = await rig.request("hello", max_tokens=2)
    rig.drop(PREFILL, DropReason.DRAINING)
    assert len(rig.prefill.submitted) == 1
    rig.lose(PREFILL)
    rig.connect(PREFILL)
    rig.prefilled(A)
    rig.drop(DECODE, DropReason.DRAINING)
    rig.prefilled(B, LENGTH)
    assert text_of(await read_all(request)) == "ab"
    waiting = await rig.request(max_tokens=2)
    rig.prefilled(A)
    assert len(rig.decode.submitted) == 1
    rig.lose(DECODE)
    rig.connect(DECODE)
    rig.token(B, LENGTH)
    assert text_of(await read_all(waiting)) == "ab"
    await rig.assert_all_released()


async def test_a_preempted_sequence_stands_before_younger_ones():
    rig = await rig_with(max_running=1)
    old = await rig.request("old")
    await rig.request("young")
    rig.prefilled(A)
    rig.drop(DECODE, DropReason.PREEMPTED)
    assert rig.prefill.submitted[-1].request_id == old.request_id


@pytest.mark.parametrize("phase", [PREFILL, DECODE])
async def test_a_lost_phase_is_a_pause(rig, phase):
    request = await rig.request("hello", max_tokens=3)
    if phase is DECODE:
        rig.prefilled(A)
    lost = rig.phase(phase).submitted[-1].lease_id
    rig.lose(phase)
    if phase is PREFILL:
        assert len(rig.prefill.submitted) == 1, "nothing goes to a phase that is away"
        rig.connect(PREFILL)
    again = rig.prefill.submitted[-1]
    assert again.lease_id != lost
    assert again.token_ids == (*b"hello", A) if phase is DECODE else (*b"hello",)
    await rig.gateway.leases.flush()
    assert lost not in rig.store.leases
    tokens = [A, B, C][len(again.token_ids) - 5 :]
    rig.prefilled(tokens[0])
    rig.connect(DECODE)
    for token in tokens[1:-1]:
        rig.token(token)
    rig.token(tokens[-1], LENGTH)
    assert text_of(await read_all(request)) == "abc"
    await rig.assert_all_released()


async def test_a_prefilled_sequence_waits_for_decode_with_its_lease(rig):
    rig.lose(DECODE)
    request = await rig.request(max_tokens=2)
    spec = rig.prefilled(A)
    assert rig.decode.submitted == []
    await rig.gateway.leases.renew()
    assert spec.lease_id in rig.store.renewed[-1]
    rig.connect(DECODE)
    assert rig.decode.submitted[0].lease_id == spec.lease_id
    rig.token(B, LENGTH)
    assert text_of(await read_all(request)) == "ab"
    await rig.assert_all_released()


async def test_what_a_lost_attempt_still_says_is_stale(rig):
    request = await rig.request(max_tokens=2)
    stale = rig.prefill.submitted[0]
    rig.lose(PREFILL)
    rig.prefill.held[stale.lease_id] = stale
    rig.prefilled(C)
    assert rig.decode.submitted == []
    assert request.sequences[0].output_token_ids == []


async def test_one_failure_is_tried_again_and_two_end_the_request(rig):
    request = await rig.request()
    rig.drop(PREFILL, DropReason.FAILED, message="first")
    assert len(rig.prefill.submitted) == 2
    rig.drop(PREFILL, DropReason.FAILED, message="second")
    with pytest.raises(SequenceFailedError, match="second"):
        await read_all(request)
    await rig.assert_all_released()


async def test_a_sequence_that_ends_its_phase_again_and_again_is_given_up(rig):
    request = await rig.request()
    bystander = await rig.request()
    for _ in range(8):
        rig.lose(PREFILL)
        rig.connect(PREFILL)
        rig.prefilled(A, lease_id=rig.prefill.submitted[-1].lease_id)
        rig.drop(DECODE, DropReason.PREEMPTED)
    with pytest.raises(SequenceFailedError, match="prefill"):
        await read_all(request)
    assert bystander.unfinished, "it made progress meanwhile"


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
    rig.orchestrator.abort("r")
    pieces = await read_all(request)
    assert pieces[-1].finish_reason is ABORT
    assert text_of(pieces) == {"decoding": "ab", "prefilled": "a"}.get(state, "")
    assert pieces[-1].usage.num_output_tokens == len(tokens_of(pieces))
    await rig.assert_all_released()


async def test_abort_of_what_does_not_run(rig):
    with pytest.raises(NotFoundError):
        rig.orchestrator.abort("nobody")


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


async def test_forks_share_the_prompt(rig):
    prompt = "x" * 40
    request = await rig.request(prompt, n=3, max_tokens=2, seed=9)
    assert len(rig.prefill.submitted) == 1
    first = rig.prefilled(A, cached=16)
    await settle()
    siblings = rig.prefill.submitted[1:]
    assert rig.store.forks == [(first.lease_id, spec.lease_id, 39) for spec in siblings]
    assert len({spec.sampling.seed for spec in (first, *siblings)}) == 3
    assert first.sampling.seed == 9
    for token, spec in zip((B, C), siblings, strict=True):
        rig.prefilled(token, lease_id=spec.lease_id, cached=32)
    for token in (A, B, C):
        rig.token(token, LENGTH)
    pieces = await read_all(request)
    assert [text_of(pieces, index) for index in range(3)] == ["aa", "bb", "cc"]
    assert [piece.usage.num_cached_tokens for piece in pieces if piece.usage] == [16, 32, 32]
    await rig.assert_all_released()
    assert len(rig.observations.seen) == 1
    assert rig.observations.seen[0].num_output_tokens == 6


async def test_siblings_are_prefilled_whole_when_memd_cannot_fork(rig):
    request = await rig.request(n=2, max_tokens=1)
    rig.store.away = True
    rig.prefilled(A, LENGTH)
    await settle()
    rig.store.away = False
    rig.prefilled(B, LENGTH)
    pieces = await read_all(request)
    assert [text_of(pieces, index) for index in range(2)] == ["a", "b"]
    await rig.assert_all_released()


@pytest.mark.parametrize("how", ["cancel", "abort", "deadline"])
@pytest.mark.parametrize("forked", [False, True], ids=["before the fork", "after the fork"])
async def test_ending_while_forked_siblings_wait(how, forked):
    rig = await rig_with(max_running=1)
    request = await rig.request(n=3, request_id="r", remaining_s=9.0)
    rig.prefilled(A)
    if forked:
        await settle()
        assert rig.orchestrator.load.num_waiting == 2
        assert len(rig.store.leases) == 3
    match how:
        case "cancel":
            rig.gateway.frontend.cancel(request)
        case "abort":
            rig.orchestrator.abort("r")
            reasons = [piece.finish_reason for piece in await read_all(request)]
            assert reasons == [ABORT] * 3
        case "deadline":
            rig.timers.advance(10)
    await rig.assert_all_released()


async def test_a_lost_phase_with_forked_siblings(rig):
    request = await rig.request("x" * 40, n=2, max_tokens=2)
    rig.prefilled(A)
    await settle()
    rig.lose(PREFILL)
    rig.lose(DECODE)
    rig.connect(PREFILL)
    rig.connect(DECODE)
    assert [spec.token_ids for spec in rig.prefill.held.values()] == [(*b"x" * 40, A), (*b"x" * 40,)]
    rig.prefilled(B, LENGTH)
    rig.prefilled(C)
    rig.token(C, LENGTH)
    pieces = await read_all(request)
    assert [text_of(pieces, index) for index in range(2)] == ["ab", "cc"]
    await rig.assert_all_released()


async def test_the_queue_has_a_bound_and_says_when_to_come_back():
    rig = await rig_with(max_running=1, max_waiting=2)
    kept = [await rig.request() for _ in range(3)]
    with pytest.raises(QueueFullError) as caught:
        await rig.request()
    assert caught.value.retry_delay_s == 1.0
    rig.prefilled(A, LENGTH)
    await read_all(kept[0])
    kept.append(await rig.request())
    rig.clock.advance(8)
    with pytest.raises(QueueFullError) as caught:
        await rig.request()
    assert caught.value.retry_delay_s == pytest.approx(8.0), "one request in 8 s, two in the queue"
    for request in kept:
        rig.gateway.frontend.cancel(request)
    await rig.assert_all_released()


async def test_refused_requests_are_counted_and_not_observed():
    rig = await rig_with(max_running=1, max_waiting=1)
    kept = [await rig.request() for _ in range(2)]
    for sampling in ({}, {"top_p": 2.0}):
        with pytest.raises(TandemError):
            await rig.request(**sampling)
    counted = (
        rig.registry.get_sample_value("tandem:request_failure_total", {"code": code})
        for code in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
    )
    assert list(counted) == [1, 1]
    assert rig.observations.seen == []
    for request in kept:
        rig.gateway.frontend.cancel(request)


async def test_sequences_that_come_back_take_nobodys_place_in_the_queue():
    rig = await rig_with(max_running=1, max_waiting=1)
    await rig.request()
    rig.prefilled(A)
    rig.lose(PREFILL)
    rig.lose(DECODE)
    await rig.request()
    with pytest.raises(QueueFullError):
        await rig.request()


async def test_no_more_than_max_running_are_in_the_phases():
    rig = await rig_with(max_running=2)
    for _ in range(4):
        await rig.request(max_tokens=2)
    assert (rig.orchestrator.load.num_waiting, len(rig.prefill.held)) == (2, 2)
    rig.prefilled(A)
    assert len(rig.prefill.held) == 1
    rig.token(B, LENGTH)
    assert len(rig.prefill.held) == 2


async def test_higher_priority_goes_first():
    rig = await rig_with(max_running=1)
    for priority in (0, 5, 1, 5):
        await rig.request(priority=priority)
    for _ in range(4):
        rig.prefilled(A, LENGTH)
    assert [spec.priority for spec in rig.prefill.submitted] == [0, 5, 5, 1]


async def test_a_running_request_id_is_refused_and_free_afterwards(rig):
    request = await rig.request(request_id="twin")
    with pytest.raises(DuplicateRequestError, match="twin"):
        await rig.request(request_id="twin")
    rig.prefilled(A, LENGTH)
    assert text_of(await read_all(request)) == "a"
    await rig.request(request_id="twin")


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
    drained = asyncio.ensure_future(rig.orchestrator.drain(timeout_s))
    await settle()
    return drained


async def test_readiness_needs_all_three():
    rig = Rig()
    with pytest.raises(NotReadyError):
        await rig.request()
    rig.connect(PREFILL)
    rig.connect(DECODE)
    assert rig.readiness == []
    await rig.gateway.pool.poll()
    assert rig.readiness == [True]
    rig.lose(DECODE)
    assert rig.readiness == [True, False]
    rig.connect(DECODE)
    rig.store.away = True
    await rig.gateway.pool.poll()
    assert rig.readiness == [True, False, True, False]
    status = rig.gateway.status.now()
    assert (status.prefill_connected, status.decode_connected, status.memd_connected) == (True, True, False)


async def test_an_observation_counts_from_arrival(rig):
    request = await running(rig, "queued")
    rig.clock.advance(0.5)
    rig.connect(PREFILL)
    rig.clock.advance(0.25)
    rig.prefilled(A)  # computing took 2 ms of it
    rig.clock.advance(0.1)
    rig.token(B)
    rig.clock.advance(0.3)
    rig.token(C, LENGTH)
    assert text_of(await read_all(request)) == "abc"
    (seen,) = rig.observations.seen
    assert seen.ttft_ms == pytest.approx(750)
    assert (seen.ttft_wait_ms, seen.ttft_compute_ms) == (pytest.approx(748), pytest.approx(2))
    assert seen.tpot_ms == pytest.approx(200)
    assert (seen.ok, seen.num_prompt_tokens, seen.num_output_tokens) == (True, 2, 3)
    assert rig.registry.get_sample_value("tandem:request_success_total", {"finished_reason": "length"}) == 1
    assert rig.registry.get_sample_value("tandem:generation_tokens_total") == 3


async def test_releases_wait_for_memd_to_come_back(rig):
    request = await running(rig, "decoding")
    rig.store.away = True
    rig.gateway.frontend.cancel(request)
    rig.obey_aborts()
    with pytest.raises(NotReadyError):
        await rig.gateway.leases.flush()
    assert rig.gateway.leases.num_unreleased == 1
    rig.store.away = False
    await rig.assert_all_released()


async def test_releases_of_many_go_in_one_message(rig):
    requests = [await rig.request() for _ in range(10)]
    for request in requests:
        rig.gateway.frontend.cancel(request)
    await rig.assert_all_released()
    assert rig.store.num_release_calls == 1

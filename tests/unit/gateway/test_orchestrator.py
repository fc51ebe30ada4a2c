"""The way of sequences, against phases and a store that do exactly what the test says."""

import pytest

from tandem.errors import (
    NotReadyError,
    SequenceFailedError,
)
from tandem.types import DropReason, FinishReason, Phase
from tests.support.gateway_fakes import Rig, read_all, running, text_of, tokens_of
from tests.support.gateway_world import EOS

STOP, LENGTH, ABORT = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT
PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
A, B, C = b"abc"


@pytest.fixture
async def rig() -> Rig:
    return await Rig().up()


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
    await rig.replica.leases.flush()
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
    await rig.replica.leases.renew()
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


async def test_readiness_needs_all_three():
    rig = Rig()
    with pytest.raises(NotReadyError):
        await rig.request()
    rig.connect(PREFILL)
    rig.connect(DECODE)
    assert rig.readiness == []
    await rig.replica.pool.poll()
    assert rig.readiness == [True]
    rig.lose(DECODE)
    assert rig.readiness == [True, False]
    rig.connect(DECODE)
    rig.store.away = True
    await rig.replica.pool.poll()
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
        await rig.replica.leases.flush()
    assert rig.replica.leases.num_unreleased == 1
    rig.store.away = False
    await rig.assert_all_released()


async def test_releases_of_many_go_in_one_message(rig):
    requests = [await rig.request() for _ in range(10)]
    for request in requests:
        rig.gateway.frontend.cancel(request)
    await rig.assert_all_released()
    assert rig.store.num_release_calls == 1

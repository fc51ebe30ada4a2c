"""Several answers to one prompt."""

import pytest

from tandem.types import FinishReason, Phase
from tests.support.gateway_fakes import Rig, read_all, rig_with, settle, text_of

STOP, LENGTH, ABORT = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT
PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
A, B, C = b"abc"


@pytest.fixture
async def rig() -> Rig:
    return await Rig().up()


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
            rig.gateway.reception.abort("r")
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

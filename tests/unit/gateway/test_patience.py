"""The bound on waiting for a first turn."""

import pytest

from services.gateway.requests import Request
from services.gateway.resumption import Resume
from tandem.errors import QueueFullError
from tandem.types import FinishReason, Phase
from tests.support.gateway_fakes import Rig, read_all, rig_with, running
from tests.support.gateway_world import EOS

BOUND_S = 60.0


async def full_rig(**settings: object) -> tuple[Rig, Request]:
    """One request is in prefill and nobody else finds room there."""
    rig = await rig_with(max_running=1, refuse_after_s=BOUND_S, **settings)
    return rig, await rig.request("first")


async def refusal_of(request: Request) -> QueueFullError:
    with pytest.raises(QueueFullError) as caught:
        await read_all(request)
    return caught.value


@pytest.mark.parametrize("policy", ["fcfs", "longest-prefix", "kvshare"])
async def test_who_has_had_no_turn_is_refused_with_a_delay_and_the_others_go_on(policy):
    rig, first = await full_rig(queue_policy=policy)
    early = await rig.request("early")
    rig.timers.advance(20.0)
    late = await rig.request("late")
    rig.timers.advance(BOUND_S - 20.1)
    assert not early.finished
    rig.timers.advance(0.1)
    refusal = await refusal_of(early)
    assert "no turn came within 60 s" in str(refusal)
    assert refusal.retry_delay_s > 0
    rig.prefilled(EOS, FinishReason.STOP)
    assert len(rig.prefill.held) == 1
    rig.timers.advance(10 * BOUND_S)
    rig.prefilled(EOS, FinishReason.STOP)
    for request in (first, late):
        assert (await read_all(request))[-1].usage
    await rig.assert_all_released()


async def test_each_has_its_own_bound():
    rig, first = await full_rig()
    others = []
    for _ in range(3):
        others.append(await rig.request("another"))
        rig.timers.advance(10.0)
    for number in range(3):
        rig.timers.advance(BOUND_S - 30.0 if number == 0 else 10.0)
        await refusal_of(others[number])
        assert all(not each.finished for each in (first, *others[number + 1 :]))
    rig.prefilled(EOS, FinishReason.STOP)
    await rig.assert_all_released()


@pytest.mark.parametrize("phase", Phase)
async def test_time_without_a_phase_does_not_count(phase):
    rig = await rig_with(refuse_after_s=BOUND_S)
    rig.lose(phase)
    if phase is Phase.DECODE:
        rig.prefill.connected = False  # so that it waits: prefill alone would take it
    request = await rig.request("patient")
    rig.timers.advance(100 * BOUND_S)
    assert not request.finished
    rig.prefill.connected = True
    rig.connect(phase)
    rig.prefilled(EOS, FinishReason.STOP)
    assert (await read_all(request))[-1].usage
    await rig.assert_all_released()


async def test_the_time_before_a_phase_went_away_counts():
    rig, first = await full_rig()
    waiting = await rig.request("waiting")
    rig.timers.advance(40.0)
    rig.lose(Phase.DECODE)
    rig.timers.advance(100.0)
    rig.connect(Phase.DECODE)
    rig.timers.advance(19.0)
    assert not waiting.finished
    rig.timers.advance(1.0)
    await refusal_of(waiting)
    rig.prefilled(EOS, FinishReason.STOP)
    assert (await read_all(first))[-1].usage
    await rig.assert_all_released()


async def test_who_had_a_turn_waits_for_the_next_one():
    rig = await rig_with(max_running=2, refuse_after_s=BOUND_S)
    request = await running(rig, "decoding")
    rig.lose(Phase.DECODE)
    rig.lose(Phase.PREFILL)
    rig.connect(Phase.DECODE)
    rig.connect(Phase.PREFILL)
    rig.timers.advance(10 * BOUND_S)
    rig.prefilled(EOS, FinishReason.STOP)
    assert (await read_all(request))[-1].usage
    await rig.assert_all_released()


async def test_who_was_taken_on_before_a_gateway_ended_is_not_refused():
    rig, first = await full_rig()
    resumed = await rig.request("mine", resume=Resume())
    rig.timers.advance(10 * BOUND_S)
    rig.prefilled(EOS, FinishReason.STOP)
    rig.prefilled(EOS, FinishReason.STOP)
    for request in (first, resumed):
        assert (await read_all(request))[-1].usage
    await rig.assert_all_released()

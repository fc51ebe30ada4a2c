"""What a request may expect: who is refused because its first token would come too late, and how many run at once."""

import pytest

from services.gateway.prospects import MARGIN, Promise, Prospects
from tandem.clock import ManualClock
from tandem.errors import QueueFullError
from tandem.scheduler.pace import Pace
from tandem.types import Phase
from tests.support.gateway_fakes import Rig, rig_with

PROMISE = Promise(ttft_s=1.0, tpot_s=0.1)


def prospects(clock: ManualClock, promise: Promise = PROMISE) -> Prospects:
    return Prospects(promise, 8, clock)


def prefill(told: Prospects, clock: ManualClock, num_tokens: int, seconds: float) -> None:
    """One prompt, by itself."""
    told.sent(Phase.PREFILL, num_tokens)
    clock.advance(seconds)
    told.came_back(Phase.PREFILL, num_tokens, is_computed=True)


def test_a_pace_counts_only_the_time_in_which_there_was_something_to_do():
    clock = ManualClock(5.0)
    pace = Pace(clock, decay=1.0)
    assert pace.seconds_each == 0.0
    pace.note(100)  # nothing is under way
    pace.go_on()
    clock.advance(1.0)
    pace.go_on()
    clock.advance(1.0)
    pace.note(10)
    pace.pause()
    clock.advance(100.0)
    pace.go_on()
    clock.advance(1.0)
    pace.note(5)
    assert pace.seconds_each == pytest.approx(3.0 / 15)


def test_a_pace_follows_what_changes():
    clock = ManualClock(0.0)
    pace = Pace(clock, decay=0.9)
    pace.go_on()
    for seconds in (*[1.0] * 50, *[4.0] * 50):
        clock.advance(seconds)
        pace.note(1)
    assert pace.seconds_each == pytest.approx(4.0, rel=0.02)


def test_prompts_before_one_decide_whether_it_is_too_late():
    clock = ManualClock(0.0)
    told = prospects(clock)
    assert not told.is_too_late(10**9, 5, 0.0)  # nothing is known yet
    prefill(told, clock, 100, 0.1)  # a millisecond a token
    assert not told.is_too_late(int(990 * MARGIN), 5, 0.0)
    assert told.is_too_late(int(1010 * MARGIN), 5, 0.0)
    told.sent(Phase.PREFILL, 500)
    assert not told.is_too_late(int(990 * MARGIN) - 500, 1, 0.0)
    assert told.is_too_late(int(1010 * MARGIN) - 500, 1, 0.0)


def test_nobody_is_refused_behind_nobody():
    clock = ManualClock(0.0)
    told = prospects(clock)
    prefill(told, clock, 1, 100.0)
    assert not told.is_too_late(0, 0, 1.0)
    told.sent(Phase.PREFILL, 1)
    assert told.is_too_late(0, 0, 1.0)


def test_places_follow_how_long_a_token_takes():
    clock = ManualClock(0.0)
    told = prospects(clock)
    assert told.num_places == 8
    for _ in range(4):
        told.sent(Phase.DECODE, 10)
    for _ in range(20):
        clock.advance(0.07)  # for 4 sequences: a step of so many takes 80 ms at the most, the margin's part of 100
        told.stepped(4)
    assert told.num_places == 4
    for _ in range(500):
        clock.advance(1.0)
        told.stepped(4)
    assert told.num_places == 1


def test_who_waits_for_a_place_waits_for_others_to_end():
    clock = ManualClock(0.0)
    told = prospects(clock)
    for _ in range(8):
        told.sent(Phase.DECODE, 10)
    assert told.is_too_late(0, 0, 1.0)  # a second until one ends
    assert not told.is_too_late(0, 0, 2.0)
    assert told.is_too_late(0, 3, 2.0)
    told.came_back(Phase.DECODE, 15, is_computed=False)
    assert not told.is_too_late(0, 0, 1.0)


def test_without_a_promise_nothing_is_refused_and_all_may_run():
    clock = ManualClock(0.0)
    told = prospects(clock, Promise(0.0, 0.0))
    prefill(told, clock, 1, 100.0)
    told.sent(Phase.DECODE, 1)
    clock.advance(100.0)
    told.stepped(1)
    assert told.num_places == 8
    assert not told.is_too_late(10**6, 10**6, 0.1)


async def slow_rig() -> Rig:
    """A gateway that has seen a prompt of 2 tokens take a second, and has another one in prefill."""
    rig = await rig_with(admit_ttft_ms=1100)
    await rig.request("hi")
    rig.clock.advance(1.0)
    rig.prefilled(ord("a"))
    await rig.request("hi")
    return rig


async def test_the_gateway_refuses_at_once_what_would_be_too_late():
    rig = await slow_rig()
    with pytest.raises(QueueFullError, match="too late") as caught:
        await rig.request("hi")
    assert caught.value.retry_delay_s > 0


async def test_who_is_in_no_hurry_waits_and_who_goes_first_is_let_in():
    rig = await slow_rig()
    for priority in (-1, 1):
        await rig.request("hi", priority=priority)
    assert len(rig.prefill.held) == 3

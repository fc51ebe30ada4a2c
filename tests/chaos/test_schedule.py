"""Schedules: the same seed is the same one, kills are spread and spaced, each kind is there."""

import dataclasses
import itertools
from collections import Counter, defaultdict

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tandem.cli.supervision import START_SECS
from tests.chaos.schedule import (
    BETWEEN_FAULTS,
    LATEST_S,
    LINK_FAULTS,
    LOGS,
    SHORT_STOP,
    FaultKind,
    Plan,
    draw_schedule,
)

SERVICES = ("prefill", "decode", "memd", "controller", "gateway")
BETWEEN = ("gateway-decode", "prefill-memd")
PLAN = Plan(1, 600.0, 300, 3.0, SERVICES, ("link0", "link1"), BETWEEN)


def of_kind(plan, *kinds):
    return [fault for fault in draw_schedule(plan) if fault.kind in kinds]


def test_the_same_plan_is_the_same_schedule_and_another_seed_another():
    assert draw_schedule(PLAN) == draw_schedule(PLAN)
    assert draw_schedule(PLAN) != draw_schedule(dataclasses.replace(PLAN, seed=2))


@given(st.integers(), st.floats(10, 900), st.integers(0, 400))
def test_faults_come_by_time_and_within_it_on_what_there_is(seed, duration_s, num_kills):
    schedule = draw_schedule(dataclasses.replace(PLAN, seed=seed, duration_s=duration_s, num_kills=num_kills))
    times = [fault.at_s for fault in schedule]
    assert times == sorted(times)
    assert all(0 <= at_s <= duration_s + LATEST_S for at_s in times)
    assert {fault.target for fault in schedule} <= {*SERVICES, *PLAN.links, *BETWEEN, LOGS}
    assert Counter(fault.kind for fault in schedule)[FaultKind.KILL] == num_kills


@pytest.mark.parametrize("seed", range(5))
def test_kills_are_spread_over_all_services(seed):
    counts = Counter(fault.target for fault in of_kind(dataclasses.replace(PLAN, seed=seed), FaultKind.KILL))
    assert set(counts) == set(SERVICES)
    assert max(counts.values()) - min(counts.values()) <= 5
    assert sum(counts.values()) == 300


@pytest.mark.parametrize("seed", range(5))
def test_a_service_rests_between_kills_unless_it_is_killed_while_it_starts(seed):
    times = defaultdict(list)
    for fault in of_kind(dataclasses.replace(PLAN, seed=seed), FaultKind.KILL):
        times[fault.target].append(fault.at_s)
    gaps = [b - a for at_s in times.values() for a, b in itertools.pairwise(at_s)]
    early = [gap for gap in gaps if gap < START_SECS]
    assert early, "some are killed again while they start"
    assert len(early) < 0.15 * len(gaps)
    assert all(gap <= LATEST_S for gap in early), "no other start is one that supervisord delays"


def test_some_services_are_killed_while_another_starts():
    kills = of_kind(PLAN, FaultKind.KILL)
    close = [b for a, b in itertools.pairwise(kills) if b.at_s - a.at_s < 0.8 and a.target != b.target]
    assert len(close) > 30


def test_stops_are_shorter_than_the_time_out_or_last_until_the_watchdog_comes():
    short, hangs = of_kind(PLAN, FaultKind.STOP), of_kind(PLAN, FaultKind.HANG)
    assert len(short) >= 15
    assert len(hangs) >= 15
    assert all(fault.duration_s <= SHORT_STOP[1] * PLAN.hang_timeout_s for fault in short)


def test_there_are_faults_of_links_and_logs_only_where_there_are_such():
    assert {fault.kind for fault in of_kind(PLAN, *LINK_FAULTS) if fault.target in PLAN.links} == set(LINK_FAULTS)
    assert of_kind(PLAN, FaultKind.FULL_LOGS)
    bare = dataclasses.replace(PLAN, links=(), between=(), full_logs=False)
    assert not of_kind(bare, *BETWEEN_FAULTS, FaultKind.FREEZE, FaultKind.FULL_LOGS)


def test_more_kills_leave_the_other_faults_as_they_are():
    more = dataclasses.replace(PLAN, num_kills=400)
    others = set(FaultKind) - {FaultKind.KILL}
    assert of_kind(PLAN, *others) == of_kind(more, *others)


def test_every_link_between_services_has_every_fault_and_is_frozen_unless_the_time_is_short():
    done = {(fault.kind, fault.target) for fault in draw_schedule(PLAN) if fault.target in BETWEEN}
    assert done == {(kind, link) for kind in (*BETWEEN_FAULTS, FaultKind.FREEZE) for link in BETWEEN}
    assert not of_kind(dataclasses.replace(PLAN, duration_s=8.0), FaultKind.FREEZE)

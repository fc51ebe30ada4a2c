import asyncio

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.controller.controller import Controller
from tandem.clock import ManualClock
from tandem.errors import InvalidRequestError
from tandem.partition.monitor import Monitor, WindowLimits
from tandem.partition.observations import Observations
from tandem.partition.planner import Plan
from tandem.partition.static import StaticPlanner
from tandem.partition.status import PhaseHello, ShareApplied
from tandem.partition.steering import Steering
from tandem.telemetry.metrics import ControllerMetrics
from tandem.types import Phase, RequestObservation, Split, StepStatistics

DECODE = PhaseHello(Phase.DECODE, 42, "cpu-affinity")
PREFILL = PhaseHello(Phase.PREFILL, 41, "cpu-affinity")
REQUEST = RequestObservation("r", 100.0, 20.0, 80.0, 30.0, 10, 5, 0, True, 0, 0)


class FollowingPlanner:
    """Gives decode a percent for each request seen."""

    name = "following"

    def plan(self, observations: Observations, current: Split) -> Plan:
        seen = observations.requests.num_observed_total
        return Plan(Split(50, 50 + seen), f"{seen} seen")


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def controller(registry, clock):
    return make(StaticPlanner(Split(40, 60)), registry, clock)


def make(planner, registry, clock) -> Controller:
    steering = Steering(planner, Monitor(WindowLimits(10.0, 400), Split(40, 60)), 1.0)
    return Controller(steering, Split(40, 60), clock, ControllerMetrics.create(registry))


def phase_status(controller: Controller, phase: Phase):
    return next(status for status in controller.status().phases if status.phase is phase)


async def told(link) -> Split:
    decision = await asyncio.wait_for(link.next_decision(), 10)
    return decision.split


def test_it_starts_with_the_configured_split(controller):
    assert controller.decision.decision_id == 1
    assert controller.decision.split == Split(40, 60)
    assert controller.status().planner == "static"


async def test_a_phase_is_told_on_connect_and_on_change(controller):
    link = controller.open_link(DECODE)
    assert await told(link) == Split(40, 60)
    controller.fix_split(Split(30, 70))
    assert await told(link) == Split(30, 70)


async def test_a_decision_that_was_overtaken_is_skipped(controller):
    link = controller.open_link(DECODE)
    for percent in (10, 20, 30):
        controller.fix_split(Split(percent, 50))
    assert await told(link) == Split(30, 50)
    waiting = asyncio.create_task(link.next_decision())
    controller.close()
    assert await asyncio.wait_for(waiting, 10) is None


async def test_the_same_split_again_is_no_decision(controller):
    before = controller.fix_split(Split(10, 90))
    assert controller.fix_split(Split(10, 90)) == before


def test_observations_move_the_split_through_the_planner(registry, clock):
    controller = make(FollowingPlanner(), registry, clock)
    with capture_logs() as logs:
        controller.observe(REQUEST)
    assert controller.decision.split == Split(50, 51)
    assert controller.decision.reason == "1 seen"
    (event,) = [log for log in logs if log["event"] == "split.decided"]
    assert (event["decode_percent"], event["reason"]) == (51, "1 seen")


def test_a_split_by_hand_stays(registry, clock):
    controller = make(FollowingPlanner(), registry, clock)
    controller.fix_split(Split(5, 95))
    controller.observe(REQUEST)
    assert controller.decision.split == Split(5, 95)
    assert controller.decision.reason == "fixed by hand"


@pytest.mark.parametrize(
    ("split", "field"),
    [
        (Split(0, 50), "split.prefill_percent"),
        (Split(101, 50), "split.prefill_percent"),
        (Split(50, 0), "split.decode_percent"),
        (Split(50, 4294967295), "split.decode_percent"),
    ],
)
def test_shares_out_of_range_are_refused_and_change_nothing(controller, split, field):
    with pytest.raises(InvalidRequestError) as raised:
        controller.fix_split(split)
    assert raised.value.field == field
    assert controller.decision.split == Split(40, 60)


def test_what_a_phase_applied_is_recorded_and_logged(controller, registry):
    controller.open_link(DECODE)
    with capture_logs() as logs:
        controller.report_applied(Phase.DECODE, ShareApplied(1, False, "cores 1; threads 1", 2.5))
    status = phase_status(controller, Phase.DECODE)
    assert (status.applied_decision_id, status.applied_detail) == (1, "cores 1; threads 1")
    assert [log["event"] for log in logs] == ["split.applied"]
    assert registry.get_sample_value("tandem:split_applied_total", {"phase": "decode"}) == 1


def test_a_phase_that_goes_keeps_its_last_values(controller, registry):
    link = controller.open_link(DECODE)
    assert registry.get_sample_value("tandem:phase_connected", {"phase": "decode"}) == 1
    controller.close_link(link)
    status = phase_status(controller, Phase.DECODE)
    assert (status.connected, status.pid) == (False, 42)
    assert registry.get_sample_value("tandem:phase_connected", {"phase": "decode"}) == 0


async def test_a_newer_process_of_a_phase_takes_the_link_over(controller):
    old = controller.open_link(DECODE)
    new = controller.open_link(PhaseHello(Phase.DECODE, 43, "cpu-affinity"))
    assert await asyncio.wait_for(old.next_decision(), 10) is None
    controller.close_link(old)
    status = phase_status(controller, Phase.DECODE)
    assert (status.connected, status.pid) == (True, 43)
    assert await told(new) == Split(40, 60)


def test_a_share_that_needs_a_new_process_is_not_counted_as_put_in_force(controller, registry):
    controller.open_link(DECODE)
    controller.report_applied(Phase.DECODE, ShareApplied(1, True, "20 %", 0.0))
    assert not registry.get_sample_value("tandem:split_applied_total", {"phase": "decode"})


def test_a_phase_that_comes_back_starts_with_nothing_applied(controller):
    link = controller.open_link(DECODE)
    controller.report_applied(Phase.DECODE, ShareApplied(1, False, "cores 1", 1.0))
    controller.close_link(link)
    controller.open_link(DECODE)
    assert phase_status(controller, Phase.DECODE).applied_decision_id == 0


def test_steps_and_requests_show_in_the_status(controller, clock):
    controller.open_link(PREFILL)
    for _ in range(10):
        controller.report_step(Phase.PREFILL, StepStatistics(20.0, 1, 50, 100, 0, 0))
        controller.observe(REQUEST)
    clock.advance(1.0)
    status = controller.status()
    assert phase_status(controller, Phase.PREFILL).statistics.step.p50_ms == 20.0
    assert phase_status(controller, Phase.PREFILL).statistics.tokens_per_s == 50.0
    assert phase_status(controller, Phase.DECODE).statistics.step.num_samples == 0
    assert (status.requests.num_observed_total, status.requests.ttft.p99_ms, status.requests.tpot.p50_ms) == (
        10,
        100.0,
        30.0,
    )


class FailingPlanner:
    """Raises, or plans what no phase can have."""

    name = "failing"

    def __init__(self, split: Split | None) -> None:
        self.split = split

    def plan(self, observations: Observations, current: Split) -> Plan:
        if self.split is None:
            raise ZeroDivisionError("telemetry lied")
        return Plan(self.split, "beyond all shares")


@pytest.mark.parametrize("split", [None, Split(0, 100), Split(50, 1000)])
def test_a_planner_that_fails_is_logged_and_changes_nothing(split, registry, clock):
    controller = make(FailingPlanner(split), registry, clock)
    with capture_logs() as logs:
        controller.observe(REQUEST)
    assert [log["event"] for log in logs] == ["planner.failed"]
    assert controller.decision.split == Split(40, 60)


def test_the_planner_is_asked_no_oftener_than_the_interval(registry, clock):
    controller = make(FollowingPlanner(), registry, clock)
    for _ in range(3):
        controller.observe(REQUEST)
    assert controller.decision.split == Split(50, 51)
    clock.advance(1.0)
    controller.report_step(Phase.DECODE, StepStatistics(20.0, 1, 1, 100, 0, 0))
    assert controller.decision.split == Split(50, 53)


class OfferTakingPlanner:
    """Plans the first split on offer."""

    name = "offer-taking"

    def plan(self, observations: Observations, current: Split) -> Plan:
        return Plan((*observations.splits, current)[0], "on offer")


def test_on_offer_is_what_both_phases_can_have(registry, clock):
    controller = make(OfferTakingPlanner(), registry, clock)
    controller.open_link(PhaseHello(Phase.PREFILL, 41, "b", (Split(10, 90), Split(30, 70))))
    controller.observe(REQUEST)
    assert controller.decision.split == Split(40, 60)
    controller.open_link(PhaseHello(Phase.DECODE, 42, "b", (Split(30, 70), Split(80, 20))))
    clock.advance(1.0)
    controller.observe(REQUEST)
    assert controller.decision.split == Split(30, 70)

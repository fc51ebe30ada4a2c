"""Decisions by hand and on record, and what is made of phases, planners and predecessors that misbehave."""

import math
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.controller.controller import APPLY_PATIENCE_S, Controller
from services.controller.distrust import LOG_INTERVAL_S
from tandem.clock import ManualClock
from tandem.partition.monitor import Monitor, WindowLimits
from tandem.partition.planner import AdmissionAdvice, Plan, Prediction
from tandem.partition.static import StaticPlanner
from tandem.partition.status import PhaseHello, ShareApplied
from tandem.partition.steering import Steering
from tandem.telemetry.metrics import ControllerMetrics
from tandem.types import Phase, RequestObservation, Split, StepStatistics

INITIAL = Split(50, 50)
STEP = StepStatistics(10.0, 1, 1, 10, 0, 0)
REQUEST = RequestObservation("r", 100.0, 20.0, 80.0, 30.0, 10, 5, 0, True, 0, 0)


class Wish:
    """Plans what it is told to; an error is raised."""

    name = "wish"

    def __init__(self) -> None:
        self.plan_ = Plan(INITIAL, "as it is")
        self.error: Exception | None = None
        self.num_asked = 0
        self.offered = ()
        self.switch_ages_s = ()

    def plan(self, observations, current):
        self.num_asked += 1
        self.offered = observations.splits
        self.switch_ages_s = observations.switch_ages_s
        if self.error:
            raise self.error
        return self.plan_


@pytest.fixture
def wish():
    return Wish()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def controller(wish, clock, registry):
    return controller_of(wish, clock, registry)


def controller_of(planner, clock, registry) -> Controller:
    steering = Steering(planner, Monitor(WindowLimits(10.0, 400), INITIAL), 1.0)
    return Controller(steering, INITIAL, clock, ControllerMetrics.create(registry), unix_ns=lambda: 7)


def hello(phase, in_force=None):
    return PhaseHello(phase, 42, "fake", (), in_force)


def step(controller, clock):
    clock.advance(2.0)
    controller.report_step(Phase.DECODE, STEP)


def test_a_decision_is_on_record_with_what_was_seen_predicted_and_applied(controller, wish, clock):
    controller.open_link(hello(Phase.DECODE))
    controller.observe(REQUEST)
    wish.plan_ = Plan(Split(20, 80), "more for decode", Prediction(120.0, 25.0, 0.97))
    step(controller, clock)
    clock.advance(0.25)
    controller.report_applied(Phase.DECODE, ShareApplied(2, False, "cores", 1.5))
    first, second = controller.history()
    assert (first.decision.reason, first.predicted) == ("as configured", None)
    assert (second.decision.split, second.unix_ns, second.seen.num_observed_total) == (Split(20, 80), 7, 1)
    assert second.predicted == wish.plan_.predicted
    (applied,) = second.applied
    assert (applied.phase, applied.answer.apply_ms, applied.after_ms) == (Phase.DECODE, 1.5, pytest.approx(250.0))


def test_a_switch_is_as_old_as_the_last_phases_answer_and_a_new_process_is_waited_for(controller, wish, clock):
    for phase in Phase:
        controller.open_link(hello(phase))
    wish.plan_ = Plan(Split(20, 80), "more for decode")
    step(controller, clock)
    controller.report_applied(Phase.PREFILL, ShareApplied(2, False, "cores", 1.5))
    controller.report_applied(Phase.DECODE, ShareApplied(2, True, "a new process", 1.5))
    step(controller, clock)
    assert wish.switch_ages_s == (0.0,)
    controller.report_applied(Phase.DECODE, ShareApplied(2, False, "started with it", 1.5))
    step(controller, clock)
    assert wish.switch_ages_s == (2.0,)


def test_a_paused_planner_is_not_asked_until_it_is_resumed(controller, wish, clock):
    wish.plan_ = Plan(Split(20, 80), "more for decode")
    controller.set_paused(True)
    step(controller, clock)
    assert (wish.num_asked, controller.decision.split, controller.status().is_paused) == (0, INITIAL, True)
    controller.set_paused(False)
    step(controller, clock)
    assert (controller.decision.split, controller.status().is_paused) == (Split(20, 80), False)


def test_what_was_fixed_by_hand_stays_until_the_planner_is_resumed(controller, wish, clock):
    controller.fix_split(Split(30, 70))
    step(controller, clock)
    assert controller.decision.split == Split(30, 70)
    controller.set_paused(False)
    step(controller, clock)
    assert controller.decision.split == INITIAL


def test_a_planner_that_throws_is_counted_and_changes_nothing(controller, wish, clock, registry):
    wish.error = RuntimeError("no idea")
    with capture_logs() as logs:
        step(controller, clock)
    assert [entry["event"] for entry in logs] == ["planner.failed"]
    assert registry.get_sample_value("tandem:planner_failures_total") == 1
    wish.error, wish.plan_ = None, Plan(Split(20, 80), "again")
    step(controller, clock)
    assert controller.decision.split == Split(20, 80)


def test_a_phase_that_does_not_answer_is_told_of_once(controller, wish, clock, registry):
    for phase in Phase:
        controller.open_link(hello(phase))
    wish.plan_ = Plan(Split(20, 80), "more for decode")
    step(controller, clock)
    controller.report_applied(Phase.DECODE, ShareApplied(2, False, "cores", 1.0))
    with capture_logs() as logs:
        for _ in range(3):
            clock.advance(APPLY_PATIENCE_S)
            controller.report_step(Phase.DECODE, STEP)
    assert [(entry["event"], entry["phase"]) for entry in logs] == [("split.unanswered", Phase.PREFILL)]
    assert registry.get_sample_value("tandem:split_apply_timeouts_total", {"phase": "prefill"}) == 1


def test_the_split_of_a_controller_that_died_is_read_back_and_the_planner_goes_on(controller, wish, clock):
    controller.open_link(hello(Phase.DECODE, Split(20, 80)))
    assert controller.decision.split == Split(20, 80)
    assert not controller.status().is_paused
    controller.open_link(hello(Phase.PREFILL, Split(80, 20)))  # an older one: the first that came counts
    assert controller.decision.split == Split(20, 80)
    step(controller, clock)
    assert wish.num_asked == 1


def test_what_somebody_had_fixed_stays_fixed_where_the_planner_never_moves(clock, registry):
    controller = controller_of(StaticPlanner(INITIAL), clock, registry)
    controller.open_link(hello(Phase.DECODE, Split(20, 80)))
    step(controller, clock)
    assert controller.decision.split == Split(20, 80)
    assert controller.status().is_paused


@pytest.mark.parametrize("in_force", [Split(0, 100), Split(50, 1000), INITIAL])
def test_what_cannot_be_in_force_or_is_so_anyway_changes_nothing(controller, in_force):
    controller.open_link(hello(Phase.DECODE, in_force))
    assert controller.decision.decision_id == 1


STEP_LIES = [
    *(replace(STEP, duration_ms=lie) for lie in (math.nan, math.inf, -5.0, 1e300)),
    replace(STEP, unix_ns=1 << 62),
    replace(STEP, num_tokens=1 << 31),
    replace(STEP, num_backlog_tokens=-1),
]
REQUEST_LIES = [
    *(replace(REQUEST, ttft_ms=lie) for lie in (math.nan, math.inf, -5.0, 1e300)),
    replace(REQUEST, tpot_ms=math.nan),
    replace(REQUEST, unix_ns=1 << 62),
    replace(REQUEST, num_prompt_tokens=1 << 31),
]


@pytest.mark.parametrize("lie", [*STEP_LIES, *REQUEST_LIES], ids=str)
def test_telemetry_that_lies_is_counted_and_nothing_else(controller, wish, clock, registry, lie):
    before = replace(controller.status(), phases=())
    clock.advance(2.0)
    source = "decode" if isinstance(lie, StepStatistics) else "gateway"
    controller.report_step(Phase.DECODE, lie) if source == "decode" else controller.observe(lie)
    assert replace(controller.status(), phases=()) == before
    assert controller.status().phases[1].statistics.step.num_samples == 0
    assert wish.num_asked == 0
    assert registry.get_sample_value("tandem:reports_refused_total", {"source": source}) == 1
    wish.plan_ = Plan(Split(20, 80), "more for decode")
    step(controller, clock)
    assert controller.decision.split == Split(20, 80)


def test_many_lies_are_told_of_now_and_then(controller, clock):
    with capture_logs() as logs:
        for _ in range(10):
            clock.advance(LOG_INTERVAL_S / 8)
            controller.report_step(Phase.PREFILL, STEP_LIES[0])
    told = [(entry["event"], entry["source"], entry["fault"], entry["num_refused"]) for entry in logs]
    fault = ("report.refused", "prefill", "duration_ms is nan")
    assert told == [(*fault, 1), (*fault, 8)]


def test_advice_on_admission_is_shown_recorded_and_told_of_when_it_comes_and_ends(controller, wish, clock, registry):
    advice = AdmissionAdvice(0.6, "no split meets the SLOs")
    with capture_logs() as logs:
        wish.plan_ = Plan(Split(20, 80), "more for decode", admission=advice)
        step(controller, clock)
        step(controller, clock)
        assert controller.status().admission == controller.history()[-1].admission == advice
        assert registry.get_sample_value("tandem:admit_share") == 0.6
        wish.plan_ = Plan(Split(20, 80), "fine again")
        step(controller, clock)
    events = [entry["event"] for entry in logs if entry["event"].startswith("admission")]
    assert events == ["admission.advised", "admission.open"]
    assert controller.status().admission is None
    assert registry.get_sample_value("tandem:admit_share") == 1.0


def test_a_planner_that_is_paused_advises_nothing(controller, wish, clock):
    wish.plan_ = Plan(INITIAL, "too much", admission=AdmissionAdvice(0.0, "no split meets the SLOs"))
    step(controller, clock)
    controller.set_paused(True)
    assert controller.status().admission is None


def test_what_is_no_split_is_not_on_offer(controller, wish, clock):
    offered = (Split(0, 100), Split(30, 70), Split(50, 1000))
    for phase in Phase:
        controller.open_link(PhaseHello(phase, 42, "fake", offered))
    step(controller, clock)
    assert wish.offered == (Split(30, 70),)

"""The controller's state: what was observed, the decision in force, and the phases that are to follow it.

All of it lives on one asyncio loop and nothing in it waits, except a link for its next decision.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import structlog

from services.controller.distrust import Distrust
from services.controller.history import History
from tandem.clock import Clock
from tandem.errors import InvalidRequestError
from tandem.partition.planner import AdmissionAdvice, Plan
from tandem.partition.status import (
    ControllerStatus,
    Decision,
    DecisionRecord,
    PhaseHello,
    PhaseStatus,
    ShareApplied,
)
from tandem.partition.steering import Steering
from tandem.telemetry.metrics import ControllerMetrics
from tandem.types import Phase, RequestObservation, Split, StepStatistics

_log = structlog.get_logger()

STATIC = "static"
OLDEST_STEP_S = 1.0  # when it is reported
NANO = 1e9
APPLY_PATIENCE_S = 5.0  # a phase answers a decision at its step's end, or when it has been idle for a moment
NOTHING_DECIDED, AS_CONFIGURED = 0, 1  # decision ids: the configured split is the first decision


class Control(Enum):
    """Who decides."""

    PLANNER = "planner"
    HAND = "hand"


class PhaseLink:
    """One open link: says each decision once, skipping those that were overtaken."""

    def __init__(self, hello: PhaseHello, decision: Callable[[], Decision]) -> None:
        self.hello = hello
        self._decision = decision
        self._told_id = 0
        self._is_closed = False
        self._changed = asyncio.Event()
        self._changed.set()

    def notify(self) -> None:
        """There may be a decision that the phase has not been told."""
        self._changed.set()

    def close(self) -> None:
        """Nothing more is to be told."""
        self._is_closed = True
        self._changed.set()

    async def next_decision(self) -> Decision | None:
        """Waits for the newest decision that was not told yet; None when the link is closed."""
        while not self._is_closed:
            await self._changed.wait()
            self._changed.clear()
            decision = self._decision()
            if not self._is_closed and decision.decision_id != self._told_id:
                self._told_id = decision.decision_id
                return decision
        return None


@dataclass(slots=True)
class _PhaseRecord:
    status: PhaseStatus
    splits: tuple[Split, ...] = ()  # that the phase's backend offers
    link: PhaseLink | None = None


class Controller:
    """Decides the split and tells it to the phases that are there."""

    def __init__(
        self,
        steering: Steering,
        initial: Split,
        clock: Clock,
        metrics: ControllerMetrics,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`unix_ns` dates decisions for people, and senders' times are held against it."""
        self._steering = steering
        self._monitor = steering.monitor
        self._clock = clock
        self._metrics = metrics
        self._phases = {phase: _PhaseRecord(PhaseStatus(phase)) for phase in Phase}
        self._unix_ns = unix_ns
        self._history = History()
        self._distrust = Distrust(clock, unix_ns, metrics.reports_refused)
        self._admission: AdmissionAdvice | None = None
        self._control = Control.PLANNER
        self._decision = Decision(NOTHING_DECIDED, initial, "nothing decided")
        metrics.admit_share.set(1.0)
        self._decide(Plan(initial, "as configured"))

    @property
    def decision(self) -> Decision:
        """The decision in force."""
        return self._decision

    def open_link(self, hello: PhaseHello) -> PhaseLink:
        """A phase has come. A link that it had before is closed: the newest process of a phase counts."""
        record = self._phases[hello.phase]
        if record.link is not None:
            record.link.close()
        record.link = PhaseLink(hello, lambda: self._decision)
        record.status = PhaseStatus(hello.phase, True, hello.pid, hello.partition_backend)
        record.splits = hello.splits
        self._monitor.phase(hello.phase).restarted()
        self._metrics.phase_connected.labels(hello.phase).set(1)
        _log.info("phase.connected", phase=hello.phase, pid=hello.pid, backend=hello.partition_backend)
        self._read_back(hello)
        return record.link

    def close_link(self, link: PhaseLink) -> None:
        """The link has ended. Nothing changes for its phase when a newer link has taken its place."""
        link.close()
        record = self._phases[link.hello.phase]
        if record.link is not link:
            return
        record.link = None
        record.status = replace(record.status, connected=False)
        self._metrics.phase_connected.labels(link.hello.phase).set(0)
        _log.warning("phase.gone", phase=link.hello.phase, pid=link.hello.pid)

    def close(self) -> None:
        """Ends every link."""
        for record in self._phases.values():
            if record.link is not None:
                record.link.close()

    def report_step(self, phase: Phase, step: StepStatistics) -> None:
        """Takes one step of a phase in, and asks the planner when it is time."""
        if not self._distrust.believes_step(phase, step):
            return
        self._monitor.add_step(phase, step, self._clock.now(), self._age_s(step))
        self._ask()

    def report_applied(self, phase: Phase, applied: ShareApplied) -> None:
        """Records what a phase did with a decision."""
        record = self._phases[phase]
        record.status = replace(record.status, applied_decision_id=applied.decision_id, applied_detail=applied.detail)
        now_s = self._clock.now()
        split = self._history.applied(phase, applied, now_s)
        if not applied.restart_required:
            self._metrics.split_applied.labels(phase).inc()
            if split is not None:
                self._monitor.applied(phase, split, now_s)
        _log.info(
            "split.applied",
            phase=phase,
            decision_id=applied.decision_id,
            restart_required=applied.restart_required,
            detail=applied.detail,
            apply_ms=round(applied.apply_ms, 3),
        )

    def observe(self, observation: RequestObservation) -> None:
        """Takes one request in, and asks the planner when it is time."""
        self._metrics.requests_observed.inc()
        if not self._distrust.believes_observation(observation):
            return
        self._monitor.add_request(observation, self._clock.now())
        self._ask()

    def fix_split(self, split: Split) -> Decision:
        """A split by hand, which the planner leaves alone from then on. InvalidRequestError outside (0, 100]."""
        _check_split(split)
        self.set_paused(True)
        self._decide(Plan(split, "fixed by hand"))
        return self._decision

    def set_paused(self, is_paused: bool) -> None:
        """A paused planner is not asked; the split in force stays."""
        self._control = Control.HAND if is_paused else Control.PLANNER
        if is_paused:
            self._advise(None)
        _log.info("planner.paused" if is_paused else "planner.resumed", planner=self._steering.name)

    def history(self) -> tuple[DecisionRecord, ...]:
        """The newest decisions, oldest first."""
        return self._history.records()

    def status(self) -> ControllerStatus:
        """All that is known now."""
        now_s = self._clock.now()
        phases = [
            replace(record.status, statistics=self._monitor.phase(phase).statistics(now_s))
            for phase, record in self._phases.items()
        ]
        return ControllerStatus(
            self._decision,
            self._steering.name,
            tuple(phases),
            self._monitor.request_statistics(),
            is_paused=self._control is Control.HAND,
            slo=self._monitor.slos.deployment,
            admission=self._admission,
        )

    def _read_back(self, hello: PhaseHello) -> None:
        """A controller that has decided nothing itself yet goes on from what its predecessor has put in force."""
        if hello.in_force is None:
            return
        try:
            _check_split(hello.in_force)
        except InvalidRequestError as error:
            _log.warning("split.unreadable", phase=hello.phase, error=str(error))
            return
        self._monitor.applied(hello.phase, hello.in_force, self._clock.now())
        if hello.in_force == self._decision.split or self._decision.decision_id > AS_CONFIGURED:
            return
        self._decide(Plan(hello.in_force, f"in force in {hello.phase} before this controller came"))
        if self._steering.name == STATIC:
            self.set_paused(True)  # somebody had fixed it: this planner would go back to the configured split

    def _ask(self) -> None:
        """A planner that fails, or plans what no phase can have, changes nothing."""
        self._look_for_silence()
        if self._control is Control.HAND:
            return
        try:
            plan = self._steering.plan(self._clock.now(), self._decision.split, self._offered(), self._backend())
            if plan is not None:
                _check_split(plan.split)
                self._advise(plan.admission)
                self._decide(plan)
        except Exception as error:
            self._metrics.planner_failures.inc()
            _log.error("planner.failed", planner=self._steering.name, exc_info=error)

    def _age_s(self, step: StepStatistics) -> float:
        """How long ago it ended, by its sender's clock, where that makes sense: phases gather steps for a moment."""
        age_s = (self._unix_ns() - step.unix_ns) / NANO
        return age_s if 0 <= age_s <= OLDEST_STEP_S else 0.0

    def _advise(self, advice: AdmissionAdvice | None) -> None:
        """The newest plan's advice counts; it is told of when it comes and when it ends."""
        self._metrics.admit_share.set(1.0 if advice is None else advice.admit_share)
        if advice is not None and self._admission is None:
            _log.warning("admission.advised", admit_share=advice.admit_share, reason=advice.reason)
        elif advice is None and self._admission is not None:
            _log.info("admission.open")
        self._admission = advice

    def _look_for_silence(self) -> None:
        """A phase that does not answer a decision is told of; whatever it has stays in force."""
        for phase in self._history.overdue(self._clock.now(), APPLY_PATIENCE_S):
            self._metrics.apply_timeouts.labels(phase).inc()
            _log.warning("split.unanswered", phase=phase, decision_id=self._decision.decision_id)

    def _offered(self) -> tuple[Split, ...]:
        """What both phases can have; what is no split at all is not among it."""
        prefill, decode = (self._phases[phase].splits for phase in (Phase.PREFILL, Phase.DECODE))
        return tuple(split for split in prefill if split in decode and _is_split(split))

    def _backend(self) -> str:
        """The phases' own, when they have the same."""
        names = {record.status.partition_backend for record in self._phases.values()}
        return names.pop() if len(names) == 1 else ""

    def _decide(self, plan: Plan) -> None:
        is_first = self._decision.decision_id == NOTHING_DECIDED
        if plan.split == self._decision.split and not is_first:
            return
        self._decision = Decision(self._decision.decision_id + 1, plan.split, plan.reason)
        now_s = self._clock.now()
        seen = self._monitor.request_statistics()
        record = DecisionRecord(self._decision, self._unix_ns(), seen, plan.predicted, admission=plan.admission)
        linked = {phase for phase, each in self._phases.items() if each.link is not None}
        self._history.add(record, now_s, linked)
        self._monitor.decided(plan.split)
        self._publish(record)
        for each in self._phases.values():
            if each.link is not None:
                each.link.notify()

    def _publish(self, record: DecisionRecord) -> None:
        decision = record.decision
        prefill_percent, decode_percent = decision.split.prefill_percent, decision.split.decode_percent
        self._metrics.split_decisions.inc()
        self._metrics.split_percent.labels(Phase.PREFILL).set(prefill_percent)
        self._metrics.split_percent.labels(Phase.DECODE).set(decode_percent)
        _log.info(
            "split.decided",
            decision_id=decision.decision_id,
            prefill_percent=prefill_percent,
            decode_percent=decode_percent,
            reason=decision.reason,
            ttft_p99_ms=round(record.seen.ttft.p99_ms, 1),
            tpot_p99_ms=round(record.seen.tpot.p99_ms, 1),
            predicted_attainment=round(record.predicted.attainment, 3) if record.predicted else None,
        )


def _is_split(split: Split) -> bool:
    return 0 < split.prefill_percent <= 100 and 0 < split.decode_percent <= 100


def _check_split(split: Split) -> None:
    _check_percent("split.prefill_percent", split.prefill_percent)
    _check_percent("split.decode_percent", split.decode_percent)


def _check_percent(field_name: str, percent: int) -> None:
    if not 0 < percent <= 100:
        raise InvalidRequestError(field_name, f"got {percent}; expected a share in (0, 100]")

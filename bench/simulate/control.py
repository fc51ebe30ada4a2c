"""The controller of a simulated deployment: the monitor and the planners that serve, over simulated time."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.simulate.events import EventQueue
from tandem.partition.monitor import Monitor, WindowLimits
from tandem.partition.planner import Planner
from tandem.partition.steering import Steering
from tandem.types import Phase, RequestObservation, Split, StepStatistics


@dataclass(frozen=True, slots=True)
class ControlOptions:
    """As the controller is configured."""

    planner: Planner
    initial: Split
    limits: WindowLimits
    interval_s: float


@dataclass(frozen=True, slots=True)
class Offer:
    """What the machine's partition backend can do."""

    backend: str
    splits: tuple[Split, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """A decision that changed the split."""

    at_s: float
    split: Split
    reason: str


class Control:
    """Asked with every report; `assign` puts a split in force, `delay_s` after the decision."""

    def __init__(
        self,
        options: ControlOptions,
        offer: Offer,
        events: EventQueue,
        assign: Callable[[Split], None],
        delay_s: float,
    ) -> None:
        self.switches: list[Switch] = []
        self._offer = offer
        self._events = events
        self._assign = assign
        self._delay_s = delay_s
        self._monitor = Monitor(options.limits, options.initial)
        self._steering = Steering(options.planner, self._monitor, options.interval_s)
        self._decided = options.initial

    def report_step(self, phase: Phase, step: StepStatistics) -> None:
        """One step of a phase."""
        self._monitor.add_step(phase, step, self._events.now_s)
        self._decide()

    def report_request(self, request: RequestObservation) -> None:
        """One request that has ended."""
        self._monitor.add_request(request, self._events.now_s)
        self._decide()

    def _decide(self) -> None:
        now_s = self._events.now_s
        plan = self._steering.plan(now_s, self._decided, self._offer.splits, self._offer.backend)
        if plan is None or plan.split == self._decided:
            return
        self._decided = plan.split
        self._monitor.decided(plan.split)
        self.switches.append(Switch(now_s, plan.split, plan.reason))
        self._events.after(self._delay_s, lambda: self._put_in_force(plan.split))

    def _put_in_force(self, split: Split) -> None:
        self._monitor.switched(split, self._events.now_s)
        self._assign(split)

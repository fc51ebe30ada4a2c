"""Collects what is reported, and makes of it what planners are told. Pure but for what it keeps; time is passed in."""

import math
from collections import deque
from dataclasses import dataclass
from itertools import dropwhile

from tandem.partition.observations import (
    Observations,
    PhaseSamples,
    PhaseStatistics,
    RequestStatistics,
    RequestWindow,
    StepWindow,
    WindowSummary,
    latency_statistics,
)
from tandem.partition.samples import RequestSample, StepSample, request_sample, step_sample
from tandem.partition.slo import NOTHING_PROMISED, SloPolicy
from tandem.types import Phase, RequestObservation, Split, StepStatistics

SAMPLES_PER_SHARE = 32
MAX_STEPS = 2048
HISTORY_WINDOWS = 32


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """A window has the requests of the last `window_s`, of which no more than the newest `num_requests`."""

    window_s: float
    num_requests: int


class PhaseMonitor:
    """The steps of one phase's present process."""

    def __init__(self) -> None:
        self._statistics = StepWindow()
        self._steps: deque[StepSample] = deque(maxlen=MAX_STEPS)
        self._by_percent: dict[int, deque[StepSample]] = {}
        self._first_s = math.inf

    def add(self, step: StepStatistics, now_s: float, percent: int) -> None:
        """Takes one step in."""
        self._statistics.add(step, now_s)
        self._first_s = min(self._first_s, now_s)
        sample = step_sample(step, now_s, percent)
        if sample is not None:
            self._steps.append(sample)
            self._by_percent.setdefault(percent, deque(maxlen=SAMPLES_PER_SHARE)).append(sample)

    def restarted(self) -> None:
        """Another process of the phase: its steps count anew; how fast a share is remains known."""
        self._statistics = StepWindow()
        self._steps.clear()
        self._first_s = math.inf

    def statistics(self, now_s: float) -> PhaseStatistics:
        """For people."""
        return self._statistics.statistics(now_s)

    def samples(self, now_s: float, window_s: float) -> PhaseSamples:
        """For planners."""
        recent = tuple(dropwhile(lambda step: step.at_s <= now_s - window_s, self._steps))
        return PhaseSamples(
            window=recent,
            by_percent={percent: tuple(steps) for percent, steps in self._by_percent.items()},
            observed_s=min(max(0.0, now_s - self._first_s), self._span_s(recent, now_s, window_s)),
        )

    def _span_s(self, recent: tuple[StepSample, ...], now_s: float, window_s: float) -> float:
        """The window, unless there were more steps in it than are kept."""
        return now_s - recent[0].at_s if len(recent) == MAX_STEPS else window_s


class Monitor:
    """All phases, all requests, and the windows that have closed."""

    def __init__(self, limits: WindowLimits, initial: Split, slos: SloPolicy = NOTHING_PROMISED) -> None:
        """`slos`: by which it counts who attained them."""
        self.slos = slos
        self._limits = limits
        self._requests = RequestWindow(limits.num_requests, slos)
        self._served: deque[RequestSample] = deque(maxlen=limits.num_requests)
        self._phases = {phase: PhaseMonitor() for phase in Phase}
        self._history: deque[WindowSummary] = deque(maxlen=HISTORY_WINDOWS)
        self._split = initial
        self._switched_s = -math.inf
        self._window_start_s: float | None = None
        self._now_s = -math.inf

    def phase(self, phase: Phase) -> PhaseMonitor:
        """One phase's."""
        return self._phases[phase]

    def add_step(self, phase: Phase, step: StepStatistics, now_s: float) -> None:
        """Takes one step in, received at `now_s`."""
        self._phases[phase].add(step, self._advance(now_s), self._split.percent(phase))

    def add_request(self, request: RequestObservation, now_s: float) -> None:
        """Takes one request in, received at `now_s`."""
        now_s = self._advance(now_s)
        self._requests.add(request)
        sample = request_sample(request, now_s, self._split)
        if sample is not None:
            self._served.append(sample)

    def switched(self, split: Split, now_s: float) -> None:
        """`split` is in force from now on."""
        if split != self._split:
            self._split = split
            self._switched_s = self._advance(now_s)

    def request_statistics(self) -> RequestStatistics:
        """For people."""
        return self._requests.statistics()

    def observations(self, now_s: float, splits: tuple[Split, ...] = ()) -> Observations:
        """All that there is to say at `now_s`; closes the window when it is due."""
        now_s = self._advance(now_s)
        self._close_window(now_s)
        window_s = self._limits.window_s
        return Observations(
            requests=self.request_statistics(),
            phases={phase: monitor.statistics(now_s) for phase, monitor in self._phases.items()},
            now_s=now_s,
            window_s=window_s,
            splits=splits,
            served=tuple(sample for sample in self._served if sample.at_s > now_s - window_s),
            steps={phase: monitor.samples(now_s, window_s) for phase, monitor in self._phases.items()},
            history=tuple(self._history),
            since_switch_s=now_s - self._switched_s,
        )

    def _advance(self, now_s: float) -> float:
        """A clock that goes back is taken to stand."""
        if math.isfinite(now_s):
            self._now_s = max(self._now_s, now_s)
        if self._window_start_s is None:
            self._window_start_s = self._now_s
        return self._now_s

    def _close_window(self, now_s: float) -> None:
        start_s = now_s if self._window_start_s is None else self._window_start_s
        served = [sample for sample in self._served if sample.at_s > start_s]
        if now_s - start_s < self._limits.window_s and len(served) < self._limits.num_requests:
            return
        self._window_start_s = now_s
        if not served:
            return
        self._history.append(
            WindowSummary(
                closed_s=now_s,
                split=self._split,
                is_mixed=self._switched_s > start_s,
                num_requests=len(served),
                requests_per_s=len(served) / max(now_s - start_s, 1e-3),
                ttft_p90_ms=latency_statistics(sample.ttft_ms for sample in served).p90_ms,
                tpot_p90_ms=latency_statistics(sample.tpot_ms for sample in served).p90_ms,
            )
        )

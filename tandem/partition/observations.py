"""What the controller has seen lately: windows over requests and steps, bounded by count, and their statistics.

What comes over the wire may be anything: a value that is NaN, infinite or negative is left out of the statistic it
would have spoiled, and of that one alone.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tandem.partition.samples import RequestSample, StepSample
from tandem.partition.slo import NOTHING_PROMISED, SloPolicy
from tandem.types import Phase, RequestObservation, Split, StepStatistics

RATE_HORIZON_S = 10.0
MEMORY_WINDOWS = 8  # how far back samples go
STEP_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class LatencyStatistics:
    """Percentiles of a window; 0 while it is empty."""

    num_samples: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    p90_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class RequestStatistics:
    """The newest requests. Failed ones count, but have no part in the latencies."""

    num_observed_total: int = 0
    num_failed: int = 0  # in the window
    ttft: LatencyStatistics = LatencyStatistics()
    tpot: LatencyStatistics = LatencyStatistics()  # of requests with two tokens or more
    num_in_window: int = 0
    num_attained: int = 0  # of them, those that met both SLOs


@dataclass(frozen=True, slots=True)
class PhaseStatistics:
    """The newest steps of one phase; the rate is over the last seconds, and falls to 0 when the phase is idle."""

    step: LatencyStatistics = LatencyStatistics()
    tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WindowSummary:
    """A window that has closed: what was served in it, under the split that was in force at its end."""

    closed_s: float
    split: Split
    is_mixed: bool  # whether another split was in force in a part of it
    num_requests: int
    requests_per_s: float
    ttft_p90_ms: float  # 0: nobody had one. Of a class with SLOs of its own, in proportion to them
    tpot_p90_ms: float


@dataclass(frozen=True, slots=True)
class PhaseSamples:
    """Steps of one phase, oldest first. `by_percent`: the newest few of each size under each share, however old.

    Those of `by_percent` are told from each other by what was beside them; of the newest that is not known yet.
    """

    window: tuple[StepSample, ...] = ()
    remembered: tuple[StepSample, ...] = ()  # of `MEMORY_WINDOWS`
    by_percent: Mapping[int, tuple[StepSample, ...]] = field(default_factory=dict)
    observed_s: float = 0.0  # how much of what is remembered the phase was watched for

    def since(self, at_s: float) -> tuple[StepSample, ...]:
        """The remembered ones that were reported later."""
        return self.remembered[bisect_right(self.remembered, at_s, key=lambda step: step.at_s) :]


@dataclass(frozen=True, slots=True)
class Observations:
    """All that a planner is told. Times are of one monotonic clock."""

    requests: RequestStatistics = RequestStatistics()
    phases: Mapping[Phase, PhaseStatistics] = field(default_factory=dict)
    now_s: float = 0.0
    window_s: float = 10.0
    splits: tuple[Split, ...] = ()  # those that the backends offer; empty: none but the one in force
    backend: str = ""  # the partition backend's name
    served: tuple[RequestSample, ...] = ()  # as far back as samples go, oldest first
    served_s: float = 0.0  # how far back they go, at most as far as anything was reported
    steps: Mapping[Phase, PhaseSamples] = field(default_factory=dict)
    history: tuple[WindowSummary, ...] = ()  # oldest first; the last closed now or earlier
    switch_ages_s: tuple[float, ...] = ()  # of the newest switches, oldest first; 0 of one that is under way

    def served_since(self, at_s: float) -> tuple[RequestSample, ...]:
        """Those that were reported later."""
        return self.served[bisect_right(self.served, at_s, key=lambda sample: sample.at_s) :]

    def samples(self, phase: Phase) -> PhaseSamples:
        """Empty ones of a phase that never stepped."""
        return self.steps.get(phase, PhaseSamples())


class RequestWindow:
    """The newest `size` requests."""

    def __init__(self, size: int, slos: SloPolicy = NOTHING_PROMISED) -> None:
        self._slos = slos
        self._requests: deque[RequestObservation] = deque(maxlen=size)
        self._num_observed_total = 0

    def add(self, observation: RequestObservation) -> None:
        """Takes one request in; the oldest falls out of a full window."""
        self._requests.append(observation)
        self._num_observed_total += 1

    def statistics(self) -> RequestStatistics:
        """Of what the window holds."""
        served = [request for request in self._requests if request.ok]
        return RequestStatistics(
            num_observed_total=self._num_observed_total,
            num_failed=len(self._requests) - len(served),
            ttft=latency_statistics(request.ttft_ms for request in served),
            tpot=latency_statistics(request.tpot_ms for request in served if request.num_output_tokens > 1),
            num_in_window=len(self._requests),
            num_attained=sum(self._slos.of(request.request_class).is_met_by(request) for request in served),
        )


@dataclass(frozen=True, slots=True)
class _Step:
    received_s: float
    duration_ms: float
    num_tokens: int


class StepWindow:
    """The newest `size` steps of one phase."""

    def __init__(self, size: int = STEP_WINDOW) -> None:
        self._steps: deque[_Step] = deque(maxlen=size)

    def add(self, step: StepStatistics, now_s: float) -> None:
        """Takes one step in, received at `now_s` of the controller's clock."""
        self._steps.append(_Step(now_s, step.duration_ms, step.num_tokens))

    def statistics(self, now_s: float) -> PhaseStatistics:
        """Of what the window holds, seen from `now_s`."""
        return PhaseStatistics(
            step=latency_statistics(step.duration_ms for step in self._steps),
            tokens_per_s=self._tokens_per_s(now_s),
        )

    def _tokens_per_s(self, now_s: float) -> float:
        recent = [step for step in self._steps if now_s - step.received_s < RATE_HORIZON_S]
        tokens = sum(step.num_tokens for step in recent if step.num_tokens > 0)
        return tokens / self._span_s(recent, now_s)

    def _span_s(self, recent: Sequence[_Step], now_s: float) -> float:
        """The horizon, unless the window is too short to reach back that far."""
        overflowed = len(recent) == self._steps.maxlen
        span_s = now_s - recent[0].received_s if overflowed else RATE_HORIZON_S
        return span_s if span_s > 0 else RATE_HORIZON_S


def latency_statistics(values_ms: Iterable[float]) -> LatencyStatistics:
    """Percentiles of the finite values that are not negative."""
    sane = sorted(value for value in values_ms if math.isfinite(value) and value >= 0)
    if not sane:
        return LatencyStatistics()
    return LatencyStatistics(len(sane), percentile(sane, 50), percentile(sane, 99), percentile(sane, 90))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of ascending values, at least one; between two values it lies on the line that joins them."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

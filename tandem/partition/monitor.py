"""Collects what is reported, and makes of it what planners are told. Pure but for what it keeps; time is passed in."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, dropwhile

from tandem.partition.beside import Besides
from tandem.partition.observations import (
    MEMORY_WINDOWS,
    Observations,
    PhaseSamples,
    PhaseStatistics,
    RequestStatistics,
    RequestWindow,
    StepWindow,
    WindowSummary,
    latency_statistics,
)
from tandem.partition.samples import RequestSample, StepSample, request_sample, size_of, step_sample
from tandem.partition.slo import NOTHING_PROMISED, SloPolicy
from tandem.types import Phase, RequestObservation, Split, StepStatistics

SAMPLES_PER_SHARE = 32  # of one size
MAX_STEPS = 2048
HISTORY_WINDOWS = 32
MAX_SWITCHES = 16


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
        self._besides = Besides()
        self._by_percent: dict[int, dict[int, deque[StepSample]]] = {}  # and by size
        self._first_s = math.inf

    def add(self, step: StepStatistics, ended_s: float, percent: int) -> StepSample | None:
        """Takes one step in; None when it cannot be true. Steps end one after another."""
        if self._steps:
            ended_s = max(ended_s, self._steps[-1].at_s)
        self._statistics.add(step, ended_s)
        self._first_s = min(self._first_s, ended_s)
        sample = step_sample(step, ended_s, percent)
        if sample is not None:
            self._steps.append(sample)
            self._besides.add(sample)
        return sample

    def peer_stepped(self, sample: StepSample) -> None:
        """The other phase has taken a step."""
        self._besides.peer_stepped(sample)

    def restarted(self) -> None:
        """Another process of the phase: its steps count anew; how fast a share is remains known."""
        self._statistics = StepWindow()
        self._steps.clear()
        self._besides = Besides()
        self._first_s = math.inf

    def statistics(self, now_s: float) -> PhaseStatistics:
        """For people."""
        return self._statistics.statistics(now_s)

    def samples(self, now_s: float, window_s: float) -> PhaseSamples:
        """For planners."""
        for step in self._besides.settle(now_s):
            by_size = self._by_percent.setdefault(step.percent, {})
            by_size.setdefault(size_of(step.num_tokens), deque(maxlen=SAMPLES_PER_SHARE)).append(step)
        memory_s = window_s * MEMORY_WINDOWS
        remembered = tuple(dropwhile(lambda step: step.at_s <= now_s - memory_s, self._steps))
        return PhaseSamples(
            window=tuple(dropwhile(lambda step: step.at_s <= now_s - window_s, remembered)),
            remembered=remembered,
            by_percent={percent: tuple(chain(*sizes.values())) for percent, sizes in self._by_percent.items()},
            observed_s=min(max(0.0, now_s - self._first_s), self._span_s(remembered, now_s, memory_s)),
        )

    def _span_s(self, remembered: tuple[StepSample, ...], now_s: float, memory_s: float) -> float:
        """What is remembered, unless there were more steps in it than are kept."""
        return now_s - remembered[0].at_s if len(remembered) == MAX_STEPS else memory_s


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
        self._split = initial  # in force in all phases
        self._percents = {phase: initial.percent(phase) for phase in Phase}  # in force in each
        self._coming: Split | None = None  # decided, and not in force in all phases yet
        self._switches_s: deque[float] = deque(maxlen=MAX_SWITCHES)
        self._window_start_s: float | None = None
        self._first_s = math.inf  # the first report
        self._now_s = -math.inf

    def phase(self, phase: Phase) -> PhaseMonitor:
        """One phase's."""
        return self._phases[phase]

    def add_step(self, phase: Phase, step: StepStatistics, now_s: float, age_s: float = 0.0) -> None:
        """Takes one step in, received at `now_s`, that had ended `age_s` before."""
        sample = self._phases[phase].add(step, self._reported(now_s) - age_s, self._percents[phase])
        for other, monitor in self._phases.items():
            if sample is not None and other is not phase:
                monitor.peer_stepped(sample)

    def add_request(self, request: RequestObservation, now_s: float) -> None:
        """Takes one request in, received at `now_s`."""
        now_s = self._reported(now_s)
        self._requests.add(request)
        sample = request_sample(request, now_s, self._split)
        if sample is not None:
            self._served.append(sample)

    def decided(self, split: Split) -> None:
        """`split` is to be in force as soon as the phases have it; until then it counts as a switch made just now."""
        self._coming = split if split != self._split else None

    def applied(self, phase: Phase, split: Split, now_s: float) -> None:
        """A phase has its share of `split` from now on; the last one to have it makes the switch."""
        self._percents[phase] = split.percent(phase)
        if all(self._percents[each] == split.percent(each) for each in Phase):
            self._in_force(split, now_s)

    def switched(self, split: Split, now_s: float) -> None:
        """`split` is in force in all phases from now on."""
        self._percents = {phase: split.percent(phase) for phase in Phase}
        self._in_force(split, now_s)

    def request_statistics(self) -> RequestStatistics:
        """For people."""
        return self._requests.statistics()

    def observations(self, now_s: float, splits: tuple[Split, ...] = (), backend: str = "") -> Observations:
        """All that there is to say at `now_s`; closes the window when it is due.

        `splits` and the name of the partition `backend` that offers them are passed on.
        """
        now_s = self._advance(now_s)
        self._close_window(now_s)
        window_s = self._limits.window_s
        return Observations(
            requests=self.request_statistics(),
            phases={phase: monitor.statistics(now_s) for phase, monitor in self._phases.items()},
            now_s=now_s,
            window_s=window_s,
            splits=splits,
            backend=backend,
            served=tuple(sample for sample in self._served if sample.at_s > now_s - window_s * MEMORY_WINDOWS),
            served_s=self._served_s(now_s),
            steps={phase: monitor.samples(now_s, window_s) for phase, monitor in self._phases.items()},
            history=tuple(self._history),
            switch_ages_s=self._switch_ages_s(now_s),
        )

    def _in_force(self, split: Split, now_s: float) -> None:
        if split == self._coming:
            self._coming = None
        if split != self._split:
            self._split = split
            self._switches_s.append(self._advance(now_s))

    def _switch_ages_s(self, now_s: float) -> tuple[float, ...]:
        made = tuple(now_s - at_s for at_s in self._switches_s)
        return made if self._coming is None else (*made, 0.0)

    def _served_s(self, now_s: float) -> float:
        """To the first report, unless more requests were served since than are kept."""
        is_full = len(self._served) == self._served.maxlen
        start_s = self._served[0].at_s if is_full else self._first_s
        return min(max(0.0, now_s - start_s), self._limits.window_s * MEMORY_WINDOWS)

    def _reported(self, now_s: float) -> float:
        now_s = self._advance(now_s)
        self._first_s = min(self._first_s, now_s)
        return now_s

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
                is_mixed=self._coming is not None or any(at_s > start_s for at_s in self._switches_s),
                num_requests=len(served),
                requests_per_s=len(served) / max(now_s - start_s, 1e-3),
                ttft_p90_ms=latency_statistics(self._ttfts_ms(served)).p90_ms,
                tpot_p90_ms=latency_statistics(self._tpots_ms(served)).p90_ms,
            )
        )

    def _ttfts_ms(self, served: Sequence[RequestSample]) -> Iterator[float]:
        return (sample.ttft_ms * self.slos.ttft_weight(sample.request_class) for sample in served)

    def _tpots_ms(self, served: Sequence[RequestSample]) -> Iterator[float]:
        return (sample.tpot_ms * self.slos.tpot_weight(sample.request_class) for sample in served)

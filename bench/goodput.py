"""Goodput: the highest rate at which enough requests meet both SLOs. Pure: the measuring is passed in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.load.metrics import Slo

TARGET_ATTAINMENT = 0.9
TTFT_FACTOR = 7.5
TPOT_FACTOR = 10.0
GROWTH = 2.0


@dataclass(frozen=True, slots=True)
class RateSample:
    """One run."""

    rate_per_s: float
    attainment: float


@dataclass(frozen=True, slots=True)
class Search:
    """How goodput is looked for. It ends when the bounds are within `tolerance` of each other, or after `max_runs`."""

    start_rate_per_s: float
    target: float = TARGET_ATTAINMENT
    tolerance: float = 0.05  # of the lower bound
    max_runs: int = 12


@dataclass(frozen=True, slots=True)
class Goodput:
    """`rate_per_s` was measured and met the target; 0 when no rate did. `samples` in the order of measuring."""

    rate_per_s: float
    first_failing_rate_per_s: float | None  # None: no rate failed within the runs allowed
    samples: tuple[RateSample, ...]


def default_slo(lone_ttft_ms: float, lone_tpot_ms: float) -> Slo:
    """What a lone request takes, with the semi-PD paper's margins."""
    return Slo(lone_ttft_ms * TTFT_FACTOR, lone_tpot_ms * TPOT_FACTOR)


def find_goodput(measure: Callable[[float], float], search: Search) -> Goodput:
    """`measure` gives the attainment at a rate. The rate is doubled or halved until it is bracketed, then bisected."""
    samples: list[RateSample] = []
    rate = search.start_rate_per_s
    for _ in range(search.max_runs):
        samples.append(RateSample(rate, measure(rate)))
        bounds = bounds_of(samples, search.target)
        if bounds.is_within(search.tolerance):
            break
        rate = bounds.next_rate()
    bounds = bounds_of(samples, search.target)
    return Goodput(bounds.passing, bounds.failing, tuple(samples))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the samples say: the highest passing rate below every failing one, and the lowest failing rate."""

    passing: float  # 0: none
    failing: float | None

    def is_within(self, tolerance: float) -> bool:
        """Whether there is nothing left to find."""
        return self.failing is not None and self.passing > 0 and self.failing - self.passing <= tolerance * self.passing

    def next_rate(self) -> float:
        """What to measure next."""
        if self.failing is None:
            return self.passing * GROWTH
        if self.passing == 0:
            return self.failing / GROWTH
        return (self.passing + self.failing) / 2


def bounds_of(samples: Sequence[RateSample], target: float) -> Bounds:
    """Noise may let a rate pass above one that failed: only what lies below every failure counts as passing."""
    failing = min((sample.rate_per_s for sample in samples if sample.attainment < target), default=None)
    passing = (
        sample.rate_per_s
        for sample in samples
        if sample.attainment >= target and (failing is None or sample.rate_per_s < failing)
    )
    return Bounds(max(passing, default=0.0), failing)

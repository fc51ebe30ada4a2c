"""Goodput: the highest rate at which enough requests meet both SLOs. Pure: the measuring is passed in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from bench.load.metrics import Slo

TARGET_ATTAINMENT = 0.9
TTFT_FACTOR = 7.5
TPOT_FACTOR = 10.0
GROWTH = 2.0

Measure = Callable[[Sequence[str], float], Mapping[str, Sequence[float]]]
"""Attainments of the deployments named, run in turn at one rate: for each deployment, one a seed."""


@dataclass(frozen=True, slots=True)
class RateSample:
    """One probe of one deployment. `attainment` is the mean over the seeds."""

    rate_per_s: float
    attainment: float
    by_seed: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Search:
    """How goodput is looked for: until the bounds are within `tolerance` of each other, or for `max_probes`."""

    start_rate_per_s: float
    target: float = TARGET_ATTAINMENT
    tolerance: float = 0.05  # of the lower bound
    max_probes: int = 12  # of each deployment


@dataclass(frozen=True, slots=True)
class Goodput:
    """`rate_per_s` was measured and met the target; 0 when no rate did. `samples` in the order of measuring."""

    rate_per_s: float
    first_failing_rate_per_s: float | None  # None: no rate failed within the probes allowed
    samples: tuple[RateSample, ...]


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

    def leaves_open(self, rate: float) -> bool:
        """Whether a probe at `rate` could say something new."""
        return self.passing < rate and (self.failing is None or rate < self.failing)


def default_slo(lone_ttft_ms: float, lone_tpot_ms: float) -> Slo:
    """What a lone request takes, with the semi-PD paper's margins."""
    return Slo(lone_ttft_ms * TTFT_FACTOR, lone_tpot_ms * TPOT_FACTOR)


def find_goodputs(names: Sequence[str], measure: Measure, search: Search) -> dict[str, Goodput]:
    """All deployments side by side, each with its own bracket: doubled or halved until there is one, then bisected.

    A rate that one deployment wants next is probed on all for which it is open, before the search goes on.
    """
    samples: dict[str, list[RateSample]] = {name: [] for name in names}
    while wanting := [name for name in names if _goes_on(samples[name], search)]:
        rate = _next_rate(samples[wanting[0]], search)
        probed = [name for name in wanting if bounds_of(samples[name], search.target).leaves_open(rate)]
        found = measure(probed, rate)
        for name in probed:
            samples[name].append(RateSample(rate, fmean(found[name]), tuple(found[name])))
    return {name: _goodput(samples[name], search.target) for name in names}


def bounds_of(samples: Sequence[RateSample], target: float) -> Bounds:
    """Noise may let a rate pass above one that failed: only what lies below every failure counts as passing."""
    failing = min((sample.rate_per_s for sample in samples if sample.attainment < target), default=None)
    passing = (
        sample.rate_per_s
        for sample in samples
        if sample.attainment >= target and (failing is None or sample.rate_per_s < failing)
    )
    return Bounds(max(passing, default=0.0), failing)


def _goes_on(samples: Sequence[RateSample], search: Search) -> bool:
    return len(samples) < search.max_probes and not bounds_of(samples, search.target).is_within(search.tolerance)


def _next_rate(samples: Sequence[RateSample], search: Search) -> float:
    return bounds_of(samples, search.target).next_rate() if samples else search.start_rate_per_s


def _goodput(samples: Sequence[RateSample], target: float) -> Goodput:
    bounds = bounds_of(samples, target)
    return Goodput(bounds.passing, bounds.failing, tuple(samples))


def crossing_rate(points: Mapping[float, float], target: float) -> float | None:
    """Where the line through `points` (attainment by rate) first falls below `target`; None: between no two."""
    rates = sorted(points)
    for rate, following in pairwise(rates):
        above, below = points[rate] - target, target - points[following]
        if above >= 0 and below > 0:
            return rate + (following - rate) * above / (above + below)
    return None


def rates_by_seed(goodput: Goodput, target: float) -> tuple[float, ...]:
    """Each seed's own crossing, where its samples have one: how far goodput moves with the requests and the machine."""
    num_seeds = max((len(sample.by_seed) for sample in goodput.samples), default=0)
    crossings = (
        crossing_rate({sample.rate_per_s: sample.by_seed[seed] for sample in goodput.samples}, target)
        for seed in range(num_seeds)
    )
    return tuple(rate for rate in crossings if rate is not None)

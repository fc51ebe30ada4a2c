"""Whether what a service has grows while it works, over all its lives. Pure.

Samples of processes that are younger than `SETTLED_S` do not count, nor those of the first `WARM_UP` of the run. A line
is fitted to the others over time (least squares); what it rises from end to end must stay below the bound: a fixed
amount, or a share of the mean where that is more. With less than `SHORTEST_S` of samples nothing is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

SETTLED_S = 3.0
WARM_UP = 0.2
SHORTEST_S = 60.0
FEWEST_SAMPLES = 20


class Verdict(StrEnum):
    """Of one quantity of one service."""

    FLAT = "flat"
    GROWS = "grows"
    UNKNOWN = "too short to say"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process had at one moment. `anon_bytes`: memory of its own; segments that it maps do not count."""

    at_s: float
    role: str
    pid: int
    age_s: float
    anon_bytes: int
    num_descriptors: int


@dataclass(frozen=True, slots=True)
class Bound:
    """How much something may rise over a run."""

    fixed: float
    share: float

    def of(self, mean: float) -> float:
        """Where the samples have that mean."""
        return max(self.fixed, self.share * mean)


MEMORY = Bound(16 << 20, 0.05)
DESCRIPTORS = Bound(4, 0.1)


@dataclass(frozen=True, slots=True)
class Growth:
    """Of one quantity of one service."""

    role: str
    quantity: str
    num_samples: int
    mean: float
    rise: float  # of the fitted line, over the samples' time
    bound: float
    verdict: Verdict


def growth_of(samples: Sequence[Sample]) -> tuple[Growth, ...]:
    """Of every service that there are samples of."""
    start_s, end_s = min(each.at_s for each in samples), max(each.at_s for each in samples)
    warm_s = start_s + WARM_UP * (end_s - start_s)
    result: list[Growth] = []
    for role in sorted({each.role for each in samples}):
        settled = [each for each in samples if each.role == role and each.at_s >= warm_s and each.age_s >= SETTLED_S]
        times_s = [each.at_s for each in settled]
        result.append(_growth(role, "anon_bytes", times_s, [each.anon_bytes for each in settled], MEMORY))
        result.append(_growth(role, "descriptors", times_s, [each.num_descriptors for each in settled], DESCRIPTORS))
    return tuple(result)


def _growth(role: str, quantity: str, times_s: Sequence[float], values: Sequence[int], bound: Bound) -> Growth:
    mean = float(np.mean(values)) if values else 0.0
    span_s = max(times_s) - min(times_s) if times_s else 0.0
    if len(values) < FEWEST_SAMPLES or span_s < SHORTEST_S:
        return Growth(role, quantity, len(values), mean, 0.0, bound.of(mean), Verdict.UNKNOWN)
    slope = float(np.polyfit(np.asarray(times_s) - times_s[0], np.asarray(values, dtype=float), 1)[0])
    rise = slope * span_s
    verdict = Verdict.GROWS if rise > bound.of(mean) else Verdict.FLAT
    return Growth(role, quantity, len(values), mean, rise, bound.of(mean), verdict)

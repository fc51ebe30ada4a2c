"""Whether something grew, held against how much it moves anyway. Pure.

A trend is the Theil-Sen slope, the median of the slopes between all pairs, which a third of wild values does not move.
Its bounds are Sen's (1968), from the variance of Kendall's S. They suppose values that are independent of each other,
and what neighbours do to a machine lasts: so the variance is multiplied by what the ranks' own autocorrelation makes of
it (Hamed and Rao, "A modified Mann-Kendall trend test for autocorrelated data", 1998, equations 12 to 14).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z95 = 1.96
MIN_POINTS = 8
HOUR_S = 3600.0
WARM_UP_SHARE = 1 / 3


class Verdict(StrEnum):
    """What can be said of growth over the judged part of a run."""

    GREW = "grew"  # by more than is allowed, and more than noise
    HELD = "held"  # more than is allowed can be excluded
    UNCLEAR = "cannot be told"  # noise is as large as what is looked for
    TOO_SHORT = "too short to tell"


@dataclass(frozen=True, slots=True)
class Allowance:
    """Growth over the judged part that is none: the larger of a share of the level and an amount."""

    share: float
    amount: float

    def of(self, level: float) -> float:
        """In the level's unit."""
        return max(self.share * level, self.amount)


@dataclass(frozen=True, slots=True)
class Trend:
    """Of one series after its warm-up. Slopes are per hour, with the bounds of 95 % confidence; counts have none."""

    first: float  # the level of the judged part's first sixth
    last: float
    per_hour: float | None
    low_per_hour: float | None
    high_per_hour: float | None
    allowed: float  # growth over the judged part
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Slope:
    """A second."""

    estimate: float
    low: float
    high: float


def judged(at_s: Sequence[float], duration_s: float) -> list[int]:
    """Indices of what lies behind the warm-up, and before the run's end."""
    return [index for index, each in enumerate(at_s) if WARM_UP_SHARE * duration_s <= each <= duration_s]


def trend_of(at_s: Sequence[float], values: Sequence[float], duration_s: float, allowance: Allowance) -> Trend:
    """Grew: the slope times the judged time is more than is allowed, and the slope's lower bound is above 0."""
    kept = judged(at_s, duration_s)
    times, levels = np.array([at_s[index] for index in kept]), np.array([values[index] for index in kept])
    if len(kept) < MIN_POINTS:
        return Trend(0.0, 0.0, None, None, None, 0.0, Verdict.TOO_SHORT)
    sixth = max(1, len(levels) // 6)
    first, last = float(np.median(levels[:sixth])), float(np.median(levels[-sixth:]))
    slope, allowed = theil_sen(times, levels), allowance.of(first)
    verdict = _verdict(slope, float(times[-1] - times[0]), allowed)
    return Trend(first, last, slope.estimate * HOUR_S, slope.low * HOUR_S, slope.high * HOUR_S, allowed, verdict)


def peaks_of(at_s: Sequence[float], counts: Sequence[int], duration_s: float) -> Trend:
    """Grew: two windows of the last third, at least, are above the most of the second.

    One alone is a connection that lasted for a moment, in which somebody happened to look.
    """
    kept = judged(at_s, duration_s)
    second = [counts[index] for index in kept if at_s[index] < 2 * WARM_UP_SHARE * duration_s]
    third = [counts[index] for index in kept if at_s[index] >= 2 * WARM_UP_SHARE * duration_s]
    if len(kept) < MIN_POINTS or not (second and third):
        return Trend(0.0, 0.0, None, None, None, 0.0, Verdict.TOO_SHORT)
    verdict = Verdict.GREW if sum(count > max(second) for count in third) > 1 else Verdict.HELD
    return Trend(max(second), max(third), None, None, None, 0.0, verdict)


def theil_sen(times: Floats, values: Floats) -> Slope:
    """The slope with its bounds; `times` rise."""
    count = len(times)
    earlier, later = np.triu_indices(count, 1)
    slopes = np.sort((values[later] - values[earlier]) / (times[later] - times[earlier]))
    estimate = float(np.median(slopes))
    variance = count * (count - 1) * (2 * count + 5) / 18 * variance_factor(values - estimate * times)
    margin = Z95 * variance**0.5
    low = max(0, int((len(slopes) - margin) / 2))
    high = min(len(slopes) - 1, int(np.ceil((len(slopes) + margin) / 2)))
    return Slope(estimate, float(slopes[low]), float(slopes[high]))


def variance_factor(residuals: Floats) -> float:
    """By how much the variance of Kendall's S is larger than that of independent values; at least 1."""
    count = len(residuals)
    ranks = _ranks(residuals)
    deviations = ranks - ranks.mean()
    total = float(deviations @ deviations)
    if total == 0:
        return 1.0
    lags = np.arange(1, count - 2)
    correlations = np.array([float(deviations[lag:] @ deviations[:-lag]) / total for lag in lags])
    significant = np.where(np.abs(correlations) > Z95 / count**0.5, correlations, 0.0)
    weights = (count - lags) * (count - lags - 1) * (count - lags - 2)
    return max(1.0, 1.0 + 2.0 / (count * (count - 1) * (count - 2)) * float(weights @ significant))


def _ranks(values: Floats) -> Floats:
    """Equal values have one rank, the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def _verdict(slope: Slope, span_s: float, allowed: float) -> Verdict:
    if slope.low > 0 and slope.estimate * span_s > allowed:
        return Verdict.GREW
    return Verdict.HELD if slope.high * span_s <= allowed else Verdict.UNCLEAR

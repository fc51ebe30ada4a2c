"""Means and quantiles with bootstrap intervals (Efron 1979): items are drawn again, their positions stay together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_DRAWS = 1000
LOW, HIGH = 0.025, 0.975

Rows = npt.NDArray[np.float64]
"""``[num_items, num_values]``"""
Statistic = Callable[[Rows], float]


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic and where 95 % of its draws lie."""

    value: float
    low: float
    high: float


def interval(rows: Sequence[Sequence[float]], statistic: Statistic) -> Interval:
    """Of at least one item; the draws are the same each time."""
    values = np.asarray(rows, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(values), size=(NUM_DRAWS, len(values)))
    low, high = np.quantile([statistic(values[chosen]) for chosen in drawn], [LOW, HIGH])
    return Interval(statistic(values), float(low), float(high))


def mean(values: Rows) -> float:
    """Of all values."""
    return float(values.mean())


def median(values: Rows) -> float:
    """Of all values."""
    return float(np.median(values))


def p95(values: Rows) -> float:
    """Of all values."""
    return float(np.quantile(values, 0.95))

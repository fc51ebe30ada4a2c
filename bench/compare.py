"""Two deployments in turn: who runs when, and the ratios with their spread. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.load.metrics import Summary

Metric = Callable[[Summary], float]

METRICS: Mapping[str, Metric] = {
    "ttft_ms.p50": lambda summary: summary.ttft_ms.p50,
    "ttft_ms.p99": lambda summary: summary.ttft_ms.p99,
    "tpot_ms.p50": lambda summary: summary.tpot_ms.p50,
    "tpot_ms.p99": lambda summary: summary.tpot_ms.p99,
    "itl_ms.p99": lambda summary: summary.itl_ms.p99,
    "e2e_ms.mean": lambda summary: summary.e2e_ms.mean,
    "output_tokens_per_s": lambda summary: summary.output_tokens_per_s,
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """The second deployment's value over the first's, round by round."""

    metric: str
    median: float
    lowest: float
    highest: float
    num_rounds: int  # that have one: a round in which a value is missing has none


def turns(first: str, second: str, num_rounds: int) -> tuple[tuple[str, str], ...]:
    """Each round's order: who goes first changes, so that a machine that warms up or is disturbed favours nobody."""
    return tuple((first, second) if number % 2 == 0 else (second, first) for number in range(num_rounds))


def ratios(first: Sequence[Summary], second: Sequence[Summary]) -> tuple[Ratio, ...]:
    """One a metric, of the rounds' summaries in order."""
    found = (_ratio(name, metric, first, second) for name, metric in METRICS.items())
    return tuple(ratio for ratio in found if ratio is not None)


def _ratio(name: str, metric: Metric, first: Sequence[Summary], second: Sequence[Summary]) -> Ratio | None:
    pairs = [(metric(one), metric(other)) for one, other in zip(first, second, strict=True)]
    values = [other / one for one, other in pairs if one > 0 and other > 0]
    if not values:
        return None
    return Ratio(name, median(values), min(values), max(values), len(values))

"""Deployments in turn: who runs when, and the ratios with their spread. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.load.metrics import Summary

Metric = Callable[[Summary], float]

METRICS: Mapping[str, Metric] = {
    "ttft_ms.mean": lambda summary: summary.ttft_ms.mean,
    "ttft_ms.p50": lambda summary: summary.ttft_ms.p50,
    "ttft_ms.p99": lambda summary: summary.ttft_ms.p99,
    "tpot_ms.p50": lambda summary: summary.tpot_ms.p50,
    "tpot_ms.p99": lambda summary: summary.tpot_ms.p99,
    "itl_ms.p99": lambda summary: summary.itl_ms.p99,
    "e2e_ms.mean": lambda summary: summary.e2e_ms.mean,
    "output_tokens_per_s": lambda summary: summary.output_tokens_per_s,
    "queue_ms.p50": lambda summary: summary.queue_ms.p50 if summary.queue_ms else 0.0,
    "queue_ms.p99": lambda summary: summary.queue_ms.p99 if summary.queue_ms else 0.0,
    "queue_ms.longest": lambda summary: summary.longest_queue_ms or 0.0,
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Another deployment's value over the first's, round by round."""

    deployment: str  # the other
    metric: str
    median: float
    lowest: float
    highest: float
    num_rounds: int  # that have one: a round in which a value is missing has none


def turns(names: Sequence[str], num_rounds: int) -> tuple[tuple[str, ...], ...]:
    """Each round's order: who goes first changes, so that a machine that warms up or is disturbed favours nobody."""
    starts = (number % len(names) for number in range(num_rounds))
    return tuple((*names[start:], *names[:start]) for start in starts)


def ratios(summaries: Mapping[str, Sequence[Summary]], metrics: Mapping[str, Metric] = METRICS) -> tuple[Ratio, ...]:
    """One a metric for each deployment but the first, of each one's rounds in order."""
    first, *others = summaries
    found = (
        _ratio(other, name, metric, summaries[first], summaries[other])
        for other in others
        for name, metric in metrics.items()
    )
    return tuple(ratio for ratio in found if ratio is not None)


def _ratio(
    deployment: str, name: str, metric: Metric, first: Sequence[Summary], other: Sequence[Summary]
) -> Ratio | None:
    pairs = [(metric(one), metric(two)) for one, two in zip(first, other, strict=True)]
    values = [two / one for one, two in pairs if one > 0 and two > 0]
    if not values:
        return None
    return Ratio(deployment, name, median(values), min(values), max(values), len(values))

"""What `tandem bench endurance` writes and shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from rich.table import Table

from bench.endurance.control import LATENCIES, Control, Pair, PairJudgement
from bench.endurance.trend import Trend, Verdict
from bench.load.metrics import Distribution, Slo, Summary
from bench.results import Provenance, WorkloadFacts

REQUESTS = "requests"  # the subject that is no process


@dataclass(frozen=True, slots=True)
class ProcessWindow:
    """One process for some seconds, `at_s` their middle: medians, and the most of what is counted.

    `anonymous_bytes` is what is judged. PSS and USS count the files of libraries too, which are a process's alone or
    not by what else runs on the machine; `segment_bytes` are its part of weights and KV, which others map.
    """

    at_s: float
    pss_bytes: int
    uss_bytes: int
    anonymous_bytes: int
    segment_bytes: int
    num_descriptors: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class ProcessSeries:
    """One process over the run."""

    name: str
    windows: tuple[ProcessWindow, ...]


@dataclass(frozen=True, slots=True)
class LatencyWindow:
    """The requests that were due in some seconds, `at_s` their middle. Latencies are of those that succeeded."""

    at_s: float
    num_requests: int
    num_failed: int
    num_met: int | None  # of the SLO; None: there is none
    ttft_ms: Distribution
    tpot_ms: Distribution


@dataclass(frozen=True, slots=True)
class Judgement:
    """One series of one subject."""

    subject: str  # a process, or the requests
    measure: str
    unit: str
    trend: Trend


@dataclass(frozen=True, slots=True)
class EnduranceResult:
    """The file. With `control` it says whether latency grew, and its trend is for information."""

    provenance: Provenance
    deployment: str
    workload: WorkloadFacts
    slo: Slo | None
    duration_s: float
    window_s: float
    errors: dict[str, int]
    latencies: tuple[LatencyWindow, ...]
    processes: tuple[ProcessSeries, ...]
    judgements: tuple[Judgement, ...]
    control: Control | None = None
    schema: Literal["tandem.bench.endurance/1"] = "tandem.bench.endurance/1"

    @property
    def grew(self) -> bool:
        """Whether anything did."""
        by_trend = any(each.trend.verdict is Verdict.GREW for each in self.judgements if self.counts(each))
        return by_trend or (self.control is not None and self.control.grew)

    def counts(self, judgement: Judgement) -> bool:
        """Whether it is a verdict."""
        return self.control is None or judgement.subject != REQUESTS


def judgement_table(result: EnduranceResult) -> Table:
    """A row a series; in brackets what the control says instead."""
    table = Table("", "", "start", "end", "an hour (95 %)", "may grow", "verdict")
    before = ""
    for each in result.judgements:
        trend = each.trend
        table.add_row(
            each.subject if each.subject != before else "",
            f"{each.measure}, {each.unit}" if each.unit else each.measure,
            f"{trend.first:.1f}",
            f"{trend.last:.1f}",
            slope_text(trend),
            f"{trend.allowed:.1f}",
            str(trend.verdict) if result.counts(each) else f"({trend.verdict})",
        )
        before = each.subject
    return table


def control_table(control: Control) -> Table:
    """A row a latency; milliseconds are medians over the pairs."""
    table = Table("", "soaked, ms", "fresh, ms", "soaked / fresh: median (lowest to highest)", "verdict")
    for each in control.judgements:
        soaked, fresh = (f"{_median_ms(summaries, each.measure):.1f}" for summaries in _sides(control.pairs))
        table.add_row(each.measure, soaked, fresh, _ratio_text(each), str(each.verdict))
    return table


def control_totals(control: Control) -> str:
    """A line a side: requests, and how full its cache was before."""
    sides = zip(("soaked", "fresh"), (control.soaked_pool, control.fresh_pool), _sides(control.pairs), strict=True)
    return "\n".join(
        f"{name}: {sum(run.num_requests for run in runs)} requests, {sum(run.num_errors for run in runs)} failed, "
        f"{max((run.cached_share or 0.0 for run in runs), default=0.0):.1%} of prompt tokens cached at most; "
        f"{pool.num_cached_blocks} of {pool.num_blocks} blocks cached before"
        for name, pool, runs in sides
    )


def _sides(pairs: Sequence[Pair]) -> tuple[list[Summary], list[Summary]]:
    return [pair.soaked for pair in pairs], [pair.fresh for pair in pairs]


def _median_ms(summaries: Sequence[Summary], measure: str) -> float:
    return median([LATENCIES[measure](summary) for summary in summaries] or [0.0])


def _ratio_text(judgement: PairJudgement) -> str:
    ratio = judgement.ratio
    return "" if ratio is None else f"{ratio.median:.3f} ({ratio.lowest:.3f} to {ratio.highest:.3f})"


def slope_text(trend: Trend) -> str:
    """With its bounds; nothing for what is counted."""
    if trend.per_hour is None:
        return ""
    return f"{trend.per_hour:+.3g} ({trend.low_per_hour:+.3g} to {trend.high_per_hour:+.3g})"


def totals(result: EnduranceResult) -> str:
    """One line on the requests."""
    windows = result.latencies
    num_requests, num_failed = sum(each.num_requests for each in windows), sum(each.num_failed for each in windows)
    line = f"{num_requests} requests in {result.duration_s:.0f} s, {num_failed} failed"
    if result.slo is None or not num_requests:
        return line
    return f"{line}, {100 * sum(each.num_met or 0 for each in windows) / num_requests:.1f} % met the SLO"

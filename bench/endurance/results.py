"""What `tandem bench endurance` writes and shows."""

from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from bench.endurance.trend import Trend, Verdict
from bench.load.metrics import Distribution, Slo
from bench.results import Provenance, WorkloadFacts


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
    """The file."""

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
    schema: Literal["tandem.bench.endurance/1"] = "tandem.bench.endurance/1"

    @property
    def grew(self) -> bool:
        """Whether anything did."""
        return any(each.trend.verdict is Verdict.GREW for each in self.judgements)


def judgement_table(result: EnduranceResult) -> Table:
    """A row a series."""
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
            str(trend.verdict),
        )
        before = each.subject
    return table


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

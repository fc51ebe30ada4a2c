"""What `tandem bench shift` writes and shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from rich.table import Table

from bench.load.metrics import Slo, Summary
from bench.results import Provenance
from bench.shift.switches import SwitchSeen

PERCENT = 100.0
STATIC = "static"


@dataclass(frozen=True, slots=True)
class ShiftFacts:
    """The load of a round: prompt-heavy for `phase_s`, then answer-heavy for as long, and so on."""

    phase_s: float
    num_phases: int
    num_rounds: int
    rate_per_s: float
    length_scale: float
    seed: int  # of the first round; the next one has the next


@dataclass(frozen=True, slots=True)
class Attained:
    """How many requests came, and how many of them met both SLOs. Failed ones met none."""

    num_requests: int
    num_met: int

    def __add__(self, other: "Attained") -> "Attained":
        return Attained(self.num_requests + other.num_requests, self.num_met + other.num_met)

    @property
    def share(self) -> float:
        """0 of none."""
        return self.num_met / self.num_requests if self.num_requests else 0.0


@dataclass(frozen=True, slots=True)
class ShiftRun:
    """One round of one deployment. `steady_gap_p99_ms` is of the gaps between tokens that no switch is near."""

    deployment: str
    round_number: int
    summary: Summary
    prompt_heavy: Attained
    answer_heavy: Attained
    switches: tuple[SwitchSeen, ...]
    steady_gap_p99_ms: float


@dataclass(frozen=True, slots=True)
class ShiftResult:
    """The file."""

    provenance: Provenance
    facts: ShiftFacts
    slo: Slo
    runs: tuple[ShiftRun, ...]  # in the order in which they were made
    schema: Literal["tandem.bench.shift/2"] = "tandem.bench.shift/2"

    def of(self, deployment: str) -> tuple[ShiftRun, ...]:
        """Its rounds."""
        return tuple(run for run in self.runs if run.deployment == deployment)

    @property
    def deployments(self) -> tuple[str, ...]:
        """In the order of the first round."""
        return tuple(dict.fromkeys(run.deployment for run in self.runs))

    @property
    def best_static(self) -> float | None:
        """The highest attainment that a fixed split has over all rounds; None: there was none."""
        fixed = (total(self.of(name)).share for name in self.deployments if name.startswith(STATIC))
        return max(fixed, default=None)


def total(runs: Sequence[ShiftRun]) -> Attained:
    """Over all their requests."""
    return sum((run.prompt_heavy + run.answer_heavy for run in runs), Attained(0, 0))


def run_table(result: ShiftResult) -> Table:
    """A row a deployment: attainment over all its requests, latencies of its median round."""
    latencies = ("TTFT p90, ms", "TPOT p90, ms", "ITL p99, ms")
    table = Table(
        "deployment", "attainment", "/ best static", "by round", "prompt-heavy", "answer-heavy", *latencies, "switches"
    )
    for name in result.deployments:
        runs = result.of(name)
        table.add_row(
            name,
            _percent(total(runs)),
            f"{total(runs).share / result.best_static:.2f}" if result.best_static else "",
            ", ".join(_percent(total([run])) for run in runs),
            _percent(sum((run.prompt_heavy for run in runs), Attained(0, 0))),
            _percent(sum((run.answer_heavy for run in runs), Attained(0, 0))),
            _median(runs, lambda summary: summary.ttft_ms.p90),
            _median(runs, lambda summary: summary.tpot_ms.p90),
            _median(runs, lambda summary: summary.itl_ms.p99),
            str(sum(len(run.switches) for run in runs)),
        )
    return table


def switch_table(result: ShiftResult) -> Table:
    """A row a switch: gaps between tokens around it, just before it, and in its run away from all switches."""
    gaps = ("gaps", "p99 around, ms", "longest", "p99 before", "p99 elsewhere")
    table = Table("deployment", "round", "at, s", "to", "applied after (stood), ms", *gaps, "reason")
    for run in result.runs:
        for switch in run.switches:
            table.add_row(
                run.deployment,
                str(run.round_number),
                f"{switch.at_s:.1f}",
                f"{switch.prefill_percent},{switch.decode_percent}",
                ", ".join(f"{each.phase} {each.after_ms:.0f} ({each.stood_ms:.1f})" for each in switch.applied) or "-",
                str(switch.around.num_gaps),
                f"{switch.around.p99_ms:.1f}",
                f"{switch.around.max_ms:.1f}",
                f"{switch.before.p99_ms:.1f}",
                f"{run.steady_gap_p99_ms:.1f}",
                switch.reason,
            )
    return table


def _percent(attained: Attained) -> str:
    return f"{PERCENT * attained.share:.1f} %"


def _median(runs: Sequence[ShiftRun], of: Callable[[Summary], float]) -> str:
    return f"{median(of(run.summary) for run in runs):.1f}"

"""A run's findings as JSON, and as a table."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.experiment import NOTHING, FaultCost, Findings
from tests.chaos.oracle import Violation
from tests.chaos.pauses import summarise
from tests.chaos.schedule import Fault, Plan
from tests.chaos.system import SERVICES

COLD_OF = {
    "prefill": "prefill",
    "decode": "decode",
    "memd": "memd",
    "gateway": "everything",
    "controller": "everything",
}
BESIDE_S = 8.0  # before and after


def to_json(plan: Plan, schedule: Sequence[Fault], findings: Findings) -> dict[str, Any]:
    """All that is needed to see what happened, and to have it happen again."""
    return {
        "plan": asdict(plan),
        "schedule": [asdict(fault) for fault in schedule],
        "injections": [asdict(injection) for injection in findings.injections],
        "storm_s": findings.storm_s,
        "requests": requests_by_end(findings),
        "num_output_tokens": sum(record.num_tokens for record in findings.records),
        "requeues": findings.requeues,
        "num_evictions_of_last_memd": findings.num_evictions,
        "faults": faults_by_kind(findings),
        "pauses": {label: _pause_row(label, findings) for label in (NOTHING, *SERVICES)},
        "cold": {label: _cost_row(costs) for label, costs in _by_label(findings.cold).items()},
        "growth": [asdict(growth) for growth in findings.growth],
        "violations": [asdict(violation) for violation in findings.violations],
    }


def show(console: Console, findings: Findings) -> None:
    """Tables of what faults cost and what grows."""
    console.print(f"requests: {requests_by_end(findings)}; sequences queued again: {findings.requeues}", markup=False)
    console.print(f"faults: {faults_by_kind(findings)}", markup=False)
    console.print(_pause_table(findings))
    console.print(_growth_table(findings))


def violations(plan: Plan, schedule: Sequence[Fault], findings: Findings) -> Iterator[str]:
    """What went wrong, a line each, with the faults around it; and what it takes to have it again. Nothing when all is
    well."""
    for violation in findings.violations:
        yield f"VIOLATED: {violation.rule}: {violation.what}"
        if violation.end_s:
            yield f"    around it: {', '.join(faults_beside(findings, violation))}"
    if findings.violations:
        yield f"{len(findings.violations)} violations. Plan: {plan}"
        yield from (f"    {fault.at_s:8.3f} s {fault.kind} {fault.target} {fault.duration_s}" for fault in schedule)


def requests_by_end(findings: Findings) -> dict[str, int]:
    """How many ended how."""
    return dict(Counter(str(record.end) for record in findings.records))


def faults_by_kind(findings: Findings) -> dict[str, int]:
    """How many were done, kills by service."""
    return dict(Counter(_name(injection.fault) for injection in findings.injections))


def faults_beside(findings: Findings, violation: Violation) -> list[str]:
    """What was done to the system around the time of a violation, by time."""
    return [
        f"{injection.at_s:.2f} s {_name(injection.fault)}"
        for injection in findings.injections
        if violation.start_s - BESIDE_S <= injection.at_s <= violation.end_s + BESIDE_S
    ]


def _name(fault: Fault) -> str:
    return f"{fault.kind} {fault.target}"


def _by_label(costs: Iterable[FaultCost]) -> dict[str, list[FaultCost]]:
    labels: dict[str, list[FaultCost]] = {}
    for cost in costs:
        labels.setdefault(cost.label, []).append(cost)
    return labels


def _cost_row(costs: Sequence[FaultCost]) -> dict[str, Any]:
    summary = summarise([cost.waits_s for cost in costs])
    backs_s = sorted(cost.back_s for cost in costs)
    return {**asdict(summary), "back_p50_s": backs_s[len(backs_s) // 2] if backs_s else 0.0}


def _pause_row(label: str, findings: Findings) -> dict[str, Any]:
    """Pauses of kills that were waited for, of the storm's kills, and how much longer a cold restart's are."""
    alone = _cost_row(_by_label(findings.alone).get(label, []))
    cold = _cost_row(_by_label(findings.cold).get(COLD_OF.get(label, ""), []))
    storm = summarise(findings.storm_waits_s.get(label, []))
    row: dict[str, Any] = {"alone": alone, "storm": asdict(storm), "cold": cold if label != NOTHING else None}
    row["cold_over_alone_p50"] = _ratio(cold["p50_s"], alone["p50_s"])
    row["cold_over_alone_p99"] = _ratio(cold["p99_s"], alone["p99_s"])
    return row


def _ratio(cold_s: float, warm_s: float) -> float | None:
    return cold_s / warm_s if cold_s and warm_s else None


def _pause_table(findings: Findings) -> Table:
    table = Table(title="longest wait of each stream around a fault, s")
    headings = ("killed", "n", "all serve again p50", "p50", "p99", "longest", "storm n", "storm p50", "storm p99")
    for heading in (*headings, "cold p50", "cold p99", "cold / alone p50"):
        table.add_column(heading, justify="right")
    for label in (NOTHING, *SERVICES):
        row = _pause_row(label, findings)
        table.add_row(label, *_cells(row["alone"], row["storm"], row["cold"], row["cold_over_alone_p50"]))
    return table


def _cells(
    alone: Mapping[str, Any], storm: Mapping[str, Any], cold: Mapping[str, Any] | None, ratio: float | None
) -> list[str]:
    lone = [f"{alone[key]:.2f}" for key in ("back_p50_s", "p50_s", "p99_s", "longest_s")]
    stormy = [str(storm["num_faults"]), f"{storm['p50_s']:.2f}", f"{storm['p99_s']:.2f}"]
    reloaded = ["", ""] if cold is None else [f"{cold['p50_s']:.2f}", f"{cold['p99_s']:.2f}"]
    return [str(alone["num_faults"]), *lone, *stormy, *reloaded, "" if ratio is None else f"{ratio:.1f}"]


def _growth_table(findings: Findings) -> Table:
    table = Table(title="rise over the storm")
    for heading in ("service", "of", "samples", "mean", "rise", "bound", "verdict"):
        table.add_column(heading, justify="right")
    for each in findings.growth:
        unit = 1 << 20 if each.quantity == "anon_bytes" else 1
        numbers = (f"{value / unit:.1f}" for value in (each.mean, each.rise, each.bound))
        table.add_row(each.role, each.quantity, str(each.num_samples), *numbers, each.verdict)
    return table

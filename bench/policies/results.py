"""What `tandem bench policies` writes and shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rich.table import Table

from bench.policies.trials import Trial
from bench.results import Provenance
from tandem.config.settings import QueuePolicy

BASELINE: QueuePolicy = "fcfs"


@dataclass(frozen=True, slots=True)
class PoliciesResult:
    """`device` says whether its step times were measured. Trials with a flood stand beside the same ones without."""

    provenance: Provenance
    device: str
    load: str
    max_wait_s: float
    trials: tuple[Trial, ...]
    schema: Literal["tandem.bench.policies/1"] = "tandem.bench.policies/1"


def order_table(result: PoliciesResult) -> Table:
    """Without the flood: a row for each rate and policy, means over the seeds, and ratios over `fcfs` of each seed."""
    title = f"{result.load}; {result.device}"
    columns = ("rate", "policy", "TTFT mean, ms", "/ fcfs", "TTFT p99, ms", "/ fcfs", "longest wait / bound", "reused")
    table = Table(*columns, title=title)
    calm = [trial for trial in result.trials if not trial.flood_rate_per_s]
    for rate_per_s, policy in dict.fromkeys((trial.rate_per_s, trial.policy) for trial in calm):
        found = _of(calm, rate_per_s, policy)
        base = _of(calm, rate_per_s, BASELINE)
        table.add_row(
            f"{rate_per_s:g}",
            policy,
            f"{fmean(trial.ttft_mean_ms for trial in found):.0f}",
            ratio_text(found, base, lambda trial: trial.ttft_mean_ms),
            f"{fmean(trial.ttft_p99_ms for trial in found):.0f}",
            ratio_text(found, base, lambda trial: trial.ttft_p99_ms),
            f"{max(trial.max_wait_s for trial in found) / result.max_wait_s:.2f}",
            f"{100 * fmean(trial.hit_rate for trial in found):.1f} %",
        )
    return table


def flood_table(result: PoliciesResult) -> Table:
    """The other tenants with the flood over the same ones without, of each seed."""
    table = Table("rate", "policy", "others' p99, ms", "with flood", "/ without", title="one more tenant floods")
    flooded = [trial for trial in result.trials if trial.flood_rate_per_s]
    calm = [trial for trial in result.trials if not trial.flood_rate_per_s]
    for rate_per_s, policy in dict.fromkeys((trial.rate_per_s, trial.policy) for trial in flooded):
        found, base = _of(flooded, rate_per_s, policy), _of(calm, rate_per_s, policy)
        table.add_row(
            f"{rate_per_s:g}",
            policy,
            f"{fmean(trial.ttft_p99_ms for trial in base):.0f}",
            f"{fmean(trial.ttft_p99_ms for trial in found):.0f}",
            ratio_text(found, base, lambda trial: trial.ttft_p99_ms),
        )
    return table


def ratio_text(found: Sequence[Trial], base: Sequence[Trial], value: Callable[[Trial], float]) -> str:
    """Mean, and lowest to highest, of the seeds' ratios; empty without a base."""
    by_seed = {trial.seed: value(trial) for trial in base}
    ratios = [value(trial) / by_seed[trial.seed] for trial in found if trial.seed in by_seed]
    return f"{fmean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def _of(trials: Sequence[Trial], rate_per_s: float, policy: QueuePolicy) -> list[Trial]:
    return [trial for trial in trials if trial.rate_per_s == rate_per_s and trial.policy == policy]

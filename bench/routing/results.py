"""What `tandem bench routing` writes and shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from rich.table import Table

from bench.results import Provenance
from bench.routing.trials import Trial
from tandem.config.settings import RouterName

BASELINE: RouterName = "round-robin"
Column = Callable[[Sequence[Trial], Sequence[Trial]], str]  # of a router's trials, and of the baseline's


@dataclass(frozen=True, slots=True)
class RoutingResult:
    """`device` says whether its step times were measured. Trials with a change stand beside the same ones without."""

    provenance: Provenance
    device: str
    load: str
    num_replicas: int
    news_delay_s: float
    trials: tuple[Trial, ...]
    schema: Literal["tandem.bench.routing/1"] = "tandem.bench.routing/1"


def routing_table(result: RoutingResult) -> Table:
    """The same replicas all the time."""
    title = f"{result.num_replicas} replicas; {result.load}; {result.device}"
    return _table(title, _COLUMNS, [trial for trial in result.trials if trial.change_s is None])


def change_table(result: RoutingResult) -> Table:
    """In the middle one replica leaves, and another joins with nothing cached."""
    columns = {**_COLUMNS, "newcomer / equal share": _newcomer}
    return _table("one leaves, one joins", columns, [trial for trial in result.trials if trial.change_s is not None])


_COLUMNS: Mapping[str, Column] = {
    "TTFT mean, ms": lambda found, base: spread([trial.ttft_mean_ms for trial in found], "{:.0f}"),
    "mean / mean": lambda found, base: spread(ratios(found, base, lambda trial: trial.ttft_mean_ms), "{:.2f}"),
    "TTFT p99, ms": lambda found, base: spread([trial.ttft_p99_ms for trial in found], "{:.0f}"),
    "p99 / p99": lambda found, base: spread(ratios(found, base, lambda trial: trial.ttft_p99_ms), "{:.2f}"),
    "reused, %": lambda found, base: spread([100 * trial.hit_rate for trial in found], "{:.1f}"),
    "largest / mean work": lambda found, base: spread([trial.balance for trial in found], "{:.2f}"),
}


def _newcomer(found: Sequence[Trial], base: Sequence[Trial]) -> str:
    return spread([trial.newcomer_share for trial in found if trial.newcomer_share is not None], "{:.2f}")


def _table(title: str, columns: Mapping[str, Column], trials: Sequence[Trial]) -> Table:
    """A row for each rate and router: medians over the seeds with their range; ratios are of each seed."""
    table = Table("rate", "router", *columns, title=title, caption=f"ratios over {BASELINE}", show_lines=True)
    for rate_per_s, router in dict.fromkeys((trial.rate_per_s, trial.router) for trial in trials):
        found, base = _of(trials, rate_per_s, router), _of(trials, rate_per_s, BASELINE)
        table.add_row(f"{rate_per_s:g}", router, *(column(found, base) for column in columns.values()))
    return table


def ratios(found: Sequence[Trial], base: Sequence[Trial], value: Callable[[Trial], float]) -> list[float]:
    """Of each seed that both have."""
    by_seed = {trial.seed: value(trial) for trial in base}
    return [value(trial) / by_seed[trial.seed] for trial in found if trial.seed in by_seed]


def spread(values: Sequence[float], form: str) -> str:
    """Median, and below it lowest to highest; empty of none."""
    if not values:
        return ""
    middle, lowest, highest = (form.format(value) for value in (median(values), min(values), max(values)))
    return f"{middle}\n{lowest} to {highest}"


def _of(trials: Sequence[Trial], rate_per_s: float, router: RouterName) -> list[Trial]:
    return [trial for trial in trials if trial.rate_per_s == rate_per_s and trial.router == router]

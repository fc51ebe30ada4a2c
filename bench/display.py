"""What a benchmark shows: a bar while it runs, a table at its end."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.compare import Ratio
from bench.goodput import rates_by_seed
from bench.load.metrics import Distribution, Summary
from bench.load.process import Progress as RequestDone
from bench.results import GoodputResult, Run

PERCENT = 100.0


def new_console() -> Console:
    """Standard output; what is printed stands as it is."""
    return Console(markup=False, highlight=False)


@contextlib.contextmanager
def request_bar(console: Console, title: str, num_requests: int) -> Iterator[Callable[[RequestDone], None]]:
    """A bar that moves with every request that ends, and counts the failed ones."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=num_requests)
        num_failed = 0

        def advance(done: RequestDone) -> None:
            nonlocal num_failed
            num_failed += not done.ok
            progress.update(task, advance=1, description=f"{title}, {num_failed} failed" if num_failed else title)

        yield advance


def run_table(runs: Sequence[Run]) -> Table:
    """A row a run and latency."""
    table = Table("deployment", "", "mean", "p50", "p90", "p99")
    for run in runs:
        for number, (label, values) in enumerate(_latencies(run.summary)):
            name = run.deployment if number == 0 else ""
            table.add_row(name, label, *(f"{value:.1f}" for value in (values.mean, values.p50, values.p90, values.p99)))
        table.add_row("", _totals(run.summary), end_section=True)
    return table


def ratio_table(first: str, ratios: Sequence[Ratio]) -> Table:
    """The others over the first: a column each."""
    others = list(dict.fromkeys(ratio.deployment for ratio in ratios))
    table = Table(f"over {first}: median (lowest to highest)", *others)
    for metric in dict.fromkeys(ratio.metric for ratio in ratios):
        by_name = {ratio.deployment: ratio for ratio in ratios if ratio.metric == metric}
        table.add_row(metric, *(_spread(by_name[name]) if name in by_name else "none" for name in others))
    return table


def replica_table(runs: Sequence[Run]) -> Table:
    """Of each deployment that has replicas a row a figure, over its rounds."""
    table = Table("replicas", "median", "lowest", "highest")
    for name in dict.fromkeys(run.deployment for run in runs if run.computed_by_replica):
        rounds = [run for run in runs if run.deployment == name]
        table.add_row(name)
        for title, value in _REPLICA_FIGURES.items():
            values = [value(run) for run in rounds]
            table.add_row(f"  {title}", *map(_rounded, (median(values), min(values), max(values))))
        table.add_section()
    return table


_REPLICA_FIGURES: Mapping[str, Callable[[Run], float]] = {
    "TTFT mean, ms": lambda run: run.summary.ttft_ms.mean,
    "TTFT p99, ms": lambda run: run.summary.ttft_ms.p99,
    "tokens reused": lambda run: run.summary.num_cached_tokens or 0,
    "reused of prompts, %": lambda run: PERCENT * (run.summary.cached_share or 0.0),
    "tokens computed": lambda run: sum(run.computed_by_replica),
    "largest share / mean": lambda run: max(run.computed_by_replica) / (fmean(run.computed_by_replica) or 1.0),
}


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= PERCENT else f"{value:.2f}"


def queue_table(runs: Sequence[Run]) -> Table:
    """A row a deployment that says how long requests waited in its queue, medians over its runs."""
    table = Table("in the queue, ms", "p50", "p99", "longest of all runs", "longest / bound")
    told = [run for run in runs if run.summary.queue_ms is not None]
    for name in dict.fromkeys(run.deployment for run in told):
        own = [run for run in told if run.deployment == name]
        waits = [run.summary.queue_ms for run in own if run.summary.queue_ms is not None]
        longest_ms, bound_s = max(run.summary.longest_queue_ms or 0.0 for run in own), own[0].max_wait_s
        share = f"{longest_ms / 1e3 / bound_s:.2f}" if bound_s else ""
        p50, p99 = (median(values) for values in ([wait.p50 for wait in waits], [wait.p99 for wait in waits]))
        table.add_row(name, *(f"{value:.1f}" for value in (p50, p99, longest_ms)), share)
    return table


def goodput_table(result: GoodputResult) -> Table:
    """A row a deployment."""
    table = Table("deployment", "goodput, requests/s", "fails at", "each seed alone", "probes")
    for entry in result.deployments:
        failing = entry.goodput.first_failing_rate_per_s
        bound = "no rate tried" if failing is None else f"{failing:.3f}"
        alone = ", ".join(f"{rate:.3f}" for rate in rates_by_seed(entry.goodput, result.target))
        table.add_row(
            entry.deployment, f"{entry.goodput.rate_per_s:.3f}", bound, alone, str(len(entry.goodput.samples))
        )
    return table


def _spread(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} ({ratio.lowest:.3f} to {ratio.highest:.3f})"


def _latencies(summary: Summary) -> tuple[tuple[str, Distribution], ...]:
    return (
        ("TTFT, ms", summary.ttft_ms),
        ("TPOT, ms", summary.tpot_ms),
        ("ITL, ms", summary.itl_ms),
        ("end to end, ms", summary.e2e_ms),
        ("send delay, ms", summary.send_delay_ms),
    )


def _totals(summary: Summary) -> str:
    facts = [
        f"{summary.requests_per_s:.2f} requests/s",
        f"{summary.output_tokens_per_s:.1f} tokens/s",
        f"{summary.num_errors} of {summary.num_requests} failed",
    ]
    if summary.attainment is not None:
        facts.append(f"{summary.attainment * PERCENT:.1f} % met the SLO")
    if summary.cached_share:
        facts.append(f"{summary.cached_share * PERCENT:.1f} % of prompt tokens cached")
    return "\n".join(facts)

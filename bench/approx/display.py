"""Tables of `tandem bench approx`."""

from rich.table import Table

from bench.approx.statistics import Interval
from bench.approx.summary import SetSummary

PERCENT = 100.0


def divergence_table(result: SetSummary) -> Table:
    """A row a case: how far from full recompute."""
    title = (
        f"{result.name}: {result.num_items} prompts of {result.mean_tokens:.0f} tokens, {result.mean_reused:.0f} reused"
    )
    table = Table("", "r", "KL mean", "p95", "max", "top-1", title=title)
    for case in result.cases:
        table.add_row(
            str(case.method),
            f"{case.ratio:g}",
            _interval(case.kl_mean, 3),
            f"{case.kl_p95.value:.3f}",
            f"{case.kl_max:.2f}",
            f"{case.top1.value:.3f}",
        )
    return table


def cost_table(result: SetSummary) -> Table:
    """A row a case: what is computed, what that gains, and what of the answers is left."""
    title = f"{result.name}: {result.num_answered} answered by full recompute, TTFT {result.full_ms:.0f} ms"
    table = Table("", "r", "equal", "answered", "computed", "TTFT full / its", title=title)
    for case in result.cases:
        table.add_row(
            str(case.method),
            f"{case.ratio:g}",
            f"{case.num_agreeing_tokens:.1f}",
            "" if case.score is None else f"{case.score.value:.2f}",
            f"{case.computed_share * PERCENT:.0f} %",
            _interval(case.speedup, 2),
        )
    return table


def comparison_table(result: SetSummary) -> Table:
    """By how much the others' mean KL is above DHD's."""
    table = Table("", "r", "KL more than DHD's", title=result.name)
    for each in result.comparisons:
        table.add_row(str(each.method), f"{each.ratio:g}", _interval(each.kl_more, 4))
    return table


def stage_table(result: SetSummary) -> Table:
    """The decode stage."""
    title = f"{result.name}: a decode step {result.step_ms:.1f} ms, a refresh {result.refresh_ms:.1f} ms"
    table = Table("", "KL mean", "less than with nothing", "top-1", title=title)
    for stage in result.stages:
        table.add_row(
            str(stage.stage), _interval(stage.kl_mean, 4), f"{stage.kl_less.value:.4f}", f"{stage.top1.value:.3f}"
        )
    return table


def _interval(seen: Interval, num_digits: int) -> str:
    value, low, high = (f"{number:.{num_digits}f}" for number in (seen.value, seen.low, seen.high))
    return f"{value} ({low} to {high})"

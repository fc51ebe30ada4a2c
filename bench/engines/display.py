"""Engines' speeds as tables."""

from collections.abc import Iterable
from statistics import median

from rich.table import Table

from bench.engines.results import EnginesResult


def speed_table(result: EnginesResult) -> Table:
    """A row a case, a column an engine: tokens a second, and from where to where the rounds went."""
    engines = list(dict.fromkeys(speed.engine for speed in result.speeds))
    table = Table("tokens/s", *engines)
    for case in dict.fromkeys(speed.case for speed in result.speeds):
        cells = (spread(speed.tokens_per_s, 0) for speed in result.speeds if speed.case == case)
        table.add_row(case.title, *cells)
    return table


def ratio_table(result: EnginesResult) -> Table:
    """A row a case, a column a peer: above 1 the first engine is the faster one."""
    peers = list(dict.fromkeys(ratio.engine for ratio in result.ratios))
    table = Table(f"{result.speeds[0].engine} over", *peers)
    for case in dict.fromkeys(ratio.case for ratio in result.ratios):
        cells = (
            f"{ratio.median:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})"
            for ratio in result.ratios
            if ratio.case == case
        )
        table.add_row(case.title, *cells)
    return table


def spread(values: Iterable[float], num_digits: int) -> str:
    """Median, lowest, highest."""
    found = list(values)
    middle, lowest, highest = (f"{value:.{num_digits}f}" for value in (median(found), min(found), max(found)))
    return f"{middle} ({lowest} to {highest})"

"""Engines' speeds as bars."""

from pathlib import Path
from statistics import median

from bench.engines.results import EnginesResult
from bench.engines.rounds import Speed
from bench.figures import DPI, new_figure


def plot_speeds(result: EnginesResult, path: Path) -> Path:
    """A panel a case, a bar an engine: the median, and from the lowest round to the highest."""
    cases = list(dict.fromkeys(speed.case for speed in result.speeds))
    figure = new_figure(len(cases))
    for axes, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        speeds = [speed for speed in result.speeds if speed.case == case]
        middles = [median(speed.tokens_per_s) for speed in speeds]
        axes.bar([speed.engine for speed in speeds], middles, yerr=_errors(speeds), capsize=3)
        axes.set(title=f"{case.title}, {result.num_threads} threads", ylabel="tokens/s")
        axes.tick_params(axis="x", rotation=30)
    figure.savefig(path, dpi=DPI)
    return path


def _errors(speeds: list[Speed]) -> list[list[float]]:
    """Below and above the median."""
    below = [median(speed.tokens_per_s) - min(speed.tokens_per_s) for speed in speeds]
    above = [max(speed.tokens_per_s) - median(speed.tokens_per_s) for speed in speeds]
    return [below, above]

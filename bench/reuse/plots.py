"""What reuse saves and what it hits, as plots."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from bench.figures import DPI, new_figure
from bench.reuse.results import HitsResult, ReuseResult, SegmentsResult
from bench.reuse.rounds import Warmth
from bench.reuse.summary import REUSING, Comparison

PERCENT = 100.0


def plot_savings(result: ReuseResult, path: Path) -> Path:
    """TTFT over the prompt's length by warmth, and cold over each; bars go from the lowest round to the highest."""
    figure = new_figure(2)
    times, ratios = figure.subplots(1, 2)
    for warmth in (Warmth.COLD, *REUSING):
        series = [entry for entry in result.savings.series if entry.warmth is warmth]
        points = [
            Comparison(warmth, entry.length, median(entry.ttft_ms), min(entry.ttft_ms), max(entry.ttft_ms))
            for entry in series
        ]
        _line(times, points, str(warmth))
    for warmth in REUSING:
        _line(ratios, [each for each in result.savings.speedups if each.warmth is warmth], str(warmth))
    times.set(ylabel="TTFT, ms", yscale="log", title=f"{result.model}, {result.deployment}")
    ratios.set(ylabel="TTFT cold over it", yscale="log")
    for axes in (times, ratios):
        axes.set(xlabel="prompt tokens", xscale="log")
        axes.legend()
    figure.savefig(path, dpi=DPI)
    return path


def plot_sights(result: SegmentsResult, path: Path) -> Path:
    """A panel a deployment, a bar a case: median TTFT; lines go from the lowest round to the highest."""
    names = list(dict.fromkeys(each.deployment for each in result.series))
    figure = new_figure(len(names))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        series = [each for each in result.series if each.deployment == name]
        middles = [median(each.ttft_ms) for each in series]
        below = [middle - min(each.ttft_ms) for middle, each in zip(middles, series, strict=True)]
        above = [max(each.ttft_ms) - middle for middle, each in zip(middles, series, strict=True)]
        axes.bar([each.case.name for each in series], middles, yerr=[below, above], capsize=3)
        axes.set(ylabel="TTFT, ms", title=f"{name}, {result.source}")
        axes.tick_params(axis="x", rotation=30)
    figure.savefig(path, dpi=DPI)
    return path


def plot_hits(result: HitsResult, path: Path) -> Path:
    """The share of prompt tokens reused so far, request by request: the system and its replays."""
    figure = new_figure(1)
    axes = figure.subplots()
    for each in result.replays:
        axes.plot(_so_far(each.num_cached_tokens, result), linestyle="--", label=f"replay, {each.name}")
    axes.plot(_so_far(result.num_cached_tokens, result), color="black", linewidth=1, label=result.deployment)
    axes.set(xlabel="requests", ylabel="prompt tokens reused so far, %", title=f"{result.num_blocks} blocks")
    axes.legend()
    figure.savefig(path, dpi=DPI)
    return path


def _line(axes: Any, points: Sequence[Comparison], label: str) -> None:
    errors = [[point.median - point.lowest for point in points], [point.highest - point.median for point in points]]
    lengths = [point.length for point in points]
    axes.errorbar(lengths, [point.median for point in points], yerr=errors, marker="o", capsize=3, label=label)


def _so_far(num_cached_tokens: Sequence[int], result: HitsResult) -> list[float]:
    pairs = zip(accumulate(num_cached_tokens), accumulate(result.num_prompt_tokens), strict=True)
    return [PERCENT * cached / total for cached, total in pairs]

"""What an hour's load did to memory, descriptors and latency, as a plot."""

from pathlib import Path
from typing import Any

from bench.endurance.results import EnduranceResult
from bench.endurance.trend import WARM_UP_SHARE
from bench.figures import DPI, new_figure

MIB = 1 << 20
MINUTE_S = 60.0


def plot_endurance(result: EnduranceResult, path: Path) -> Path:
    """Four panels over time; what is right of the dotted line is judged."""
    figure = new_figure(4)
    memory, descriptors, ttft, tpot = figure.subplots(1, 4)
    for series in result.processes:
        minutes = [each.at_s / MINUTE_S for each in series.windows]
        memory.plot(minutes, [each.anonymous_bytes / MIB for each in series.windows], label=series.name)
        descriptors.plot(minutes, [each.num_descriptors for each in series.windows], label=series.name)
    minutes = [each.at_s / MINUTE_S for each in result.latencies]
    for axes, windows in ((ttft, [w.ttft_ms for w in result.latencies]), (tpot, [w.tpot_ms for w in result.latencies])):
        axes.plot(minutes, [each.p50 for each in windows], label="p50")
        axes.plot(minutes, [each.p90 for each in windows], label="p90")
    labels = {memory: "memory of its own, MiB", descriptors: "descriptors", ttft: "TTFT, ms", tpot: "TPOT, ms"}
    for axes, label in labels.items():
        _finish(axes, label, result.duration_s)
    figure.suptitle(f"{result.deployment}, {result.workload.rate_per_s:g} requests/s")
    figure.savefig(path, dpi=DPI)
    return path


def _finish(axes: Any, label: str, duration_s: float) -> None:
    axes.axvline(WARM_UP_SHARE * duration_s / MINUTE_S, linestyle=":", color="grey")
    axes.set(xlabel="minutes", ylabel=label)
    axes.set_ylim(bottom=0)
    axes.legend()

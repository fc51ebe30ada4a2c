"""Plots of results, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.approx.plots import plot_approx
from bench.approx.results import ApproxResult
from bench.endurance.plots import plot_endurance
from bench.endurance.results import EnduranceResult
from bench.engines.plots import plot_speeds
from bench.engines.results import EnginesResult
from bench.figures import DPI, new_figure
from bench.micro.plots import plot_growth, plot_memory
from bench.micro.table import MicroResult
from bench.reading import AnyResult
from bench.results import GoodputResult, Latencies, Run
from bench.reuse.plots import plot_hits, plot_savings, plot_sights
from bench.reuse.results import HitsResult, ReuseResult, SegmentsResult

LATENCIES: Mapping[str, str] = {"ttft_ms": "TTFT, ms", "tpot_ms": "TPOT, ms", "e2e_ms": "end to end, ms"}


def plot(result: AnyResult, out_dir: Path, stem: str) -> tuple[Path, ...]:
    """The files written. ConfigError: no matplotlib."""
    out_dir.mkdir(parents=True, exist_ok=True)
    match result:
        case GoodputResult():
            paths = [plot_attainment(result, out_dir / f"{stem}-attainment.png")]
        case MicroResult():
            paths = [
                plot_growth(result, out_dir / f"{stem}-growth.png"),
                plot_memory(result, out_dir / f"{stem}-memory.png"),
            ]
        case EnduranceResult():
            paths = [plot_endurance(result, out_dir / f"{stem}-endurance.png")]
        case EnginesResult():
            paths = [plot_speeds(result, out_dir / f"{stem}-speeds.png")]
        case ApproxResult():
            paths = [plot_approx(result, out_dir / f"{stem}-approx.png")]
        case ReuseResult():
            paths = [plot_savings(result, out_dir / f"{stem}-reuse.png")]
        case SegmentsResult():
            paths = [plot_sights(result, out_dir / f"{stem}-segments.png")]
        case HitsResult():
            paths = [plot_hits(result, out_dir / f"{stem}-hits.png")]
        case _:
            paths = [plot_cdfs(result.runs, out_dir / f"{stem}-latency.png")]
    return tuple(paths)


def plot_attainment(result: GoodputResult, path: Path) -> Path:
    """All deployments in one panel: a line each, its seeds as dots, its goodput as a vertical line; and the target."""
    figure = new_figure(1)
    axes = figure.subplots()
    for entry in result.deployments:
        samples = sorted(entry.goodput.samples, key=lambda sample: sample.rate_per_s)
        rates, shares = [sample.rate_per_s for sample in samples], [100 * sample.attainment for sample in samples]
        (line,) = axes.plot(rates, shares, marker="o", label=f"{entry.deployment}: {entry.goodput.rate_per_s:.2f}/s")
        for sample in samples:
            dots = [100 * share for share in sample.by_seed]
            axes.plot([sample.rate_per_s] * len(dots), dots, linestyle="", marker=".", color=line.get_color())
        axes.axvline(entry.goodput.rate_per_s, linestyle=":", color=line.get_color())
    axes.axhline(100 * result.target, linestyle="--", color="grey")
    axes.set(xlabel="requests/s", ylabel="requests that met both SLOs, %", ylim=(0, 102))
    axes.set_title(f"SLO: TTFT {result.slo.ttft_ms:.0f} ms, TPOT {result.slo.tpot_ms:.0f} ms")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=DPI)
    return path


def plot_cdfs(runs: Sequence[Run], path: Path) -> Path:
    """A panel a latency, a line a deployment, all its runs together."""
    figure = new_figure(len(LATENCIES))
    for axes, (name, label) in zip(figure.subplots(1, len(LATENCIES)), LATENCIES.items(), strict=True):
        for deployment, values in pooled(runs, name).items():
            axes.plot(values, cumulative(len(values)), label=deployment)
        axes.set(xlabel=label, ylabel="share of requests", ylim=(0, 1), xscale="log")
        axes.legend()
    figure.savefig(path, dpi=DPI)
    return path


def pooled(runs: Sequence[Run], latency: str) -> dict[str, list[float]]:
    """Rising values by deployment, of the field of `Latencies` that is named."""
    values: dict[str, list[float]] = {}
    for run in runs:
        values.setdefault(run.deployment, []).extend(_field(run.latencies, latency))
    return {deployment: sorted(found) for deployment, found in values.items()}


def cumulative(count: int) -> list[float]:
    """The share of values at or below each of `count` rising ones."""
    return [(number + 1) / count for number in range(count)]


def _field(latencies: Latencies, name: str) -> Sequence[float]:
    values: Sequence[float] = getattr(latencies, name)
    return values

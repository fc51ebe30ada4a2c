"""Plots of results, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.results import GoodputResult, Latencies, LoadResult, Run
from tandem.errors import ConfigError

LATENCIES: Mapping[str, str] = {"ttft_ms": "TTFT, ms", "tpot_ms": "TPOT, ms", "e2e_ms": "end to end, ms"}
DPI = 130


def plot(result: LoadResult, out_dir: Path, stem: str) -> tuple[Path, ...]:
    """The files written: latency CDFs, and for goodput the attainment over the rate. ConfigError: no matplotlib."""
    out_dir.mkdir(parents=True, exist_ok=True)
    if isinstance(result, GoodputResult):
        return (plot_attainment(result, out_dir / f"{stem}-attainment.png"),)
    return (plot_cdfs(result.runs, out_dir / f"{stem}-latency.png"),)


def plot_attainment(result: GoodputResult, path: Path) -> Path:
    """A line a deployment, and the target."""
    figure = _figure(1)
    axes = figure.subplots()
    for entry in result.deployments:
        samples = sorted(entry.goodput.samples, key=lambda sample: sample.rate_per_s)
        rates, shares = [sample.rate_per_s for sample in samples], [100 * sample.attainment for sample in samples]
        axes.plot(rates, shares, marker="o", label=entry.deployment)
    axes.axhline(100 * result.target, linestyle="--", color="grey")
    axes.set(xlabel="requests/s", ylabel="requests that met both SLOs, %", ylim=(0, 102))
    axes.set_title(f"SLO: TTFT {result.slo.ttft_ms:.0f} ms, TPOT {result.slo.tpot_ms:.0f} ms")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=DPI)
    return path


def plot_cdfs(runs: Sequence[Run], path: Path) -> Path:
    """A panel a latency, a line a deployment, all its runs together."""
    figure = _figure(len(LATENCIES))
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


def _figure(num_panels: int) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("bench", "plots need matplotlib: pip install 'tandem-serve[bench]'") from error
    return Figure(figsize=(5.5 * num_panels, 4.0), layout="constrained")

"""What `tandem bench simulate` writes and shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.table import Table

from bench.goodput import Goodput
from bench.load.metrics import Slo
from bench.results import Provenance
from bench.simulate.contest import STATIC, Trial
from tandem.errors import ConfigError

PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class ModeResult:
    """`trials` are at the rate asked for, or, of a search, at the goodput."""

    mode: str
    goodput: Goodput | None  # None: it was not searched for
    trials: tuple[Trial, ...]

    @property
    def attainment(self) -> float:
        """Mean over the trials."""
        return fmean(trial.attainment for trial in self.trials) if self.trials else 0.0


@dataclass(frozen=True, slots=True)
class SimulateResult:
    """`device` says whether its step times were measured."""

    provenance: Provenance
    device: str
    load: str
    slo: Slo
    target: float
    modes: tuple[ModeResult, ...]
    schema: Literal["tandem.bench.simulate/1"] = "tandem.bench.simulate/1"


def mode_table(result: SimulateResult) -> Table:
    """A row a mode; goodput beside the best static split's where there is one."""
    best = best_static(result.modes)
    columns = ("goodput", "/ best static", "attainment", "TTFT p90", "TPOT p90", "switches / 10 windows")
    table = Table(result.load, *columns)
    for mode in result.modes:
        rate = mode.goodput.rate_per_s if mode.goodput else None
        table.add_row(
            mode.mode,
            "" if rate is None else f"{rate:.3f}",
            "" if rate is None or not best else f"{rate / best:.2f}",
            f"{PERCENT * mode.attainment:.1f} %",
            *(_mean(mode.trials, name) for name in ("ttft_p90_ms", "tpot_p90_ms", "switches_per_10_windows")),
        )
    return table


def best_static(modes: Sequence[ModeResult]) -> float:
    """The highest goodput of a static split; 0 when none was searched for."""
    statics = (mode for mode in modes if mode.mode.startswith(STATIC))
    return max((mode.goodput.rate_per_s for mode in statics if mode.goodput), default=0.0)


def plot_modes(result: SimulateResult, path: Path) -> Path:
    """Attainment over the rate, a line a mode. ConfigError: nothing was searched for, or no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("bench", "plots need matplotlib: pip install 'tandem-serve[bench]'") from error
    if not any(mode.goodput for mode in result.modes):
        raise ConfigError("plot", "there is one rate only; search with --goodput")
    figure: Any = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for mode in result.modes:
        samples = sorted(mode.goodput.samples, key=lambda sample: sample.rate_per_s) if mode.goodput else []
        rates, shares = [each.rate_per_s for each in samples], [PERCENT * each.attainment for each in samples]
        axes.plot(rates, shares, marker=".", label=mode.mode)
    axes.axhline(PERCENT * result.target, linestyle="--", color="grey")
    axes.set(xlabel="requests/s", ylabel="requests that met both SLOs, %", title=f"{result.load}\n{result.device}")
    axes.legend()
    figure.savefig(path, dpi=130)
    return path


def _mean(trials: Sequence[Trial], name: str) -> str:
    return f"{fmean(getattr(trial, name) for trial in trials):.1f}" if trials else ""

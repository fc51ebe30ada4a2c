"""`tandem bench simulate`."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bench.commands.options import parse_slo
from bench.display import new_console
from bench.goodput import TARGET_ATTAINMENT, Goodput, Search
from bench.results import provenance, write_result
from bench.simulate.contest import (
    COLOCATED,
    STATIC,
    Contest,
    Job,
    Mapper,
    control_of,
    goodputs,
    lone_slo,
    parse_split,
    run_trial,
    static_modes,
)
from bench.simulate.loads import LOADS, LoadSpec, requests_of
from bench.simulate.results import ModeResult, SimulateResult, mode_table, plot_modes
from bench.simulate.systems import SwitchCost, System, cpu_system, h200_system
from bench.validate.system import read_system
from tandem.errors import ConfigError
from tandem.partition.monitor import WindowLimits

_PATH = click.Path(path_type=Path)
_SECONDS = click.FloatRange(0, min_open=True)
EVERYBODY = (COLOCATED, STATIC, "semi-pd", "predictive")


@click.command()
@click.argument("modes", nargs=-1)
@click.option("--device", type=click.Choice(["cpu", "h200"]), default="cpu", show_default=True, help="h200: plausible.")
@click.option(
    "--table",
    type=_PATH,
    help="Instead of the CPU's documented step times: a file of tandem bench validate (with contention and delays, "
    "their means over its loads), or of tandem bench micro (step times alone).",
)
@click.option("--load", default="azure", show_default=True, help=f"One of {', '.join(LOADS)}.")
@click.option("--data", type=_PATH, help="The trace's file, for azure.")
@click.option("--length-scale", type=_SECONDS, help="Of prompts and answers; default: 0.25 on the CPU, 1 on the H200.")
@click.option("--rate", default=2.0, show_default=True, type=_SECONDS, help="Requests a second; a search starts here.")
@click.option("--duration", default=180.0, show_default=True, type=_SECONDS, help="Seconds of arrivals.")
@click.option("--warm-up", default=30.0, show_default=True, type=click.FloatRange(0), help="Of them, not counted.")
@click.option("--period", default=120.0, show_default=True, type=_SECONDS, help="Seconds, of shift and square.")
@click.option("--seed", default=0, show_default=True)
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Simulations of each rate.")
@click.option("--window", default=10.0, show_default=True, type=_SECONDS, help="Seconds that the planner looks back.")
@click.option("--interval", default=1.0, show_default=True, type=_SECONDS, help="Seconds between decisions.")
@click.option("--margin", default=0.1, show_default=True, type=click.FloatRange(0, 1, max_open=True))
@click.option("--splits", help="X,Y X,Y ... on offer; together above 100 the phases compete. Default: the device's.")
@click.option("--switch-stall-ms", type=click.FloatRange(0), help="That a phase stands for a change of share.")
@click.option("--slo", help="TTFT_MS,TPOT_MS; default: 7.5 and 10 times a lone request's.")
@click.option("--goodput/--no-goodput", "search", default=False, help="Bisect the rate for 90 % attainment.")
@click.option("--tolerance", default=0.03, show_default=True, type=_SECONDS)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option("--out", type=_PATH, default=Path("simulate-result.json"), show_default=True)
@click.option("--plot", "plot_path", type=_PATH, help="A PNG of attainment over the rate; with --goodput.")
def simulate(modes: Sequence[str], out: Path, plot_path: Path | None, jobs: int, **given: Any) -> None:
    """Simulate MODES (colocated, static, static:X,Y, semi-pd, predictive; default: all) under a load.

    The planners and schedulers are those that serve; step times come from a table. `static` is every split on offer.
    """
    console = new_console()
    contest = _contest(given)
    names = _modes(modes or EVERYBODY, contest)
    with _mapper(jobs) as run_all:
        found = _found(contest, names, given, run_all)
    load = f"{contest.load.name}, {contest.load.duration_s:g} s"
    result = SimulateResult(
        provenance(), contest.system.table.label, load, contest.slo, TARGET_ATTAINMENT, tuple(found)
    )
    write_result(out, result, SimulateResult)
    console.print(f"{result.device}; SLO: TTFT {contest.slo.ttft_ms:.0f} ms, TPOT {contest.slo.tpot_ms:.1f} ms")
    console.print(mode_table(result))
    if plot_path is not None:
        console.print(f"written to {plot_modes(result, plot_path)}")
    console.print(f"written to {out}")


def _contest(given: dict[str, Any]) -> Contest:
    system = _system(given)
    load = LoadSpec(
        name=given["load"],
        duration_s=given["duration"],
        seed=given["seed"],
        period_s=given["period"],
        data=given["data"],
        length_scale=given["length_scale"] or system.length_scale,
    )
    requests_of(load, given["rate"])
    if given["warm_up"] >= given["duration"]:
        raise ConfigError("warm_up", f"{given['warm_up']} s leave nothing of {given['duration']} s")
    return Contest(
        system=system,
        load=load,
        slo=parse_slo(given["slo"]) if given["slo"] else lone_slo(system, replace(load, period_s=float("inf"))),
        limits=WindowLimits(given["window"], 400),
        interval_s=given["interval"],
        margin=given["margin"],
        initial=system.splits[len(system.splits) // 2],
        warm_up_s=given["warm_up"],
    )


def _system(given: dict[str, Any]) -> System:
    if given["table"] is not None and given["device"] != "cpu":
        raise ConfigError("table", "goes with --device cpu")
    system = _device(given["device"], given["table"])
    if given["splits"]:
        system = replace(system, splits=tuple(parse_split(text) for text in given["splits"].split()))
    if given["switch_stall_ms"] is not None:
        system = replace(system, switch=SwitchCost(system.switch.delay_s, given["switch_stall_ms"]))
    return system


def _device(name: str, table: Path | None) -> System:
    if table is not None:
        return read_system(table)
    return cpu_system() if name == "cpu" else h200_system()


def _modes(asked: Sequence[str], contest: Contest) -> list[str]:
    names: list[str] = []
    for name in asked:
        names += static_modes(contest.system.splits) if name == STATIC else [name]
    for name in names:
        control_of(contest, name)
    return list(dict.fromkeys(names))


def _found(contest: Contest, names: Sequence[str], given: dict[str, Any], run_all: Mapper) -> list[ModeResult]:
    seeds = range(given["seed"], given["seed"] + given["seeds"])
    found: dict[str, Goodput] = {}
    if given["search"]:
        search = Search(given["rate"], TARGET_ATTAINMENT, given["tolerance"])
        found = dict(goodputs(contest, names, seeds, search, run_all))
    rates = {name: found[name].rate_per_s if name in found else given["rate"] for name in names}
    jobs = [Job(contest, name, rates[name], seed) for name in names for seed in seeds if rates[name]]
    trials = list(run_all(run_trial, jobs))
    return [ModeResult(name, found.get(name), tuple(trial for trial in trials if trial.mode == name)) for name in names]


@contextlib.contextmanager
def _mapper(jobs: int) -> Iterator[Mapper]:
    """In this process, or spread over as many as asked for; results in the order of the jobs."""
    if jobs == 1:
        yield lambda work, todo: [work(job) for job in todo]
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield lambda work, todo: list(pool.map(work, todo))

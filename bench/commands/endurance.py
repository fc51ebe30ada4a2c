"""`tandem bench endurance`."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench.commands.options import experiment_of, lasting_options
from bench.deployment.open import DeploymentOptions, Target, open_deployment, parse_local
from bench.deployment.settings import parse_settings
from bench.display import new_console, request_bar
from bench.endurance.control import Control, Pool, Side, judge_pairs, pair_experiments, pair_runner, run_pairs
from bench.endurance.results import EnduranceResult, control_table, control_totals, judgement_table, totals
from bench.endurance.run import Endurance, endure
from bench.experiment import Experiment
from bench.results import write_result
from bench.reuse.system import pool_of
from bench.workloads.arrivals import ArrivalKind
from tandem.errors import ConfigError

NUM_WINDOWS = 120


@click.command()
@click.argument("deployment", default="semi-pd")
@click.option("--duration", default=3600.0, show_default=True, type=click.FloatRange(1), help="Seconds of load.")
@click.option("--sample-s", default=5.0, show_default=True, type=click.FloatRange(0.05), help="Between two looks.")
@click.option(
    "--against-fresh",
    "num_pairs",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Pairs of short loads afterwards, on this system and a fresh one: they judge latency. One more comes first.",
)
@click.option("--pair-s", default=60.0, show_default=True, type=click.FloatRange(1), help="Seconds of each such load.")
@lasting_options
def endurance(
    deployment: str, *, duration: float, sample_s: float, num_pairs: int, pair_s: float, out: Path, **given: Any
) -> None:
    """Load one DEPLOYMENT for a long time: do memory, descriptors, threads or latency grow?

    The first third is warm-up. Exit status 1: something grew by more than is allowed, and by more than noise.
    """
    console, spec = new_console(), parse_local(deployment)
    experiment = experiment_of({**given, "num_requests": ceil(duration * given["rate"])})
    if experiment.spec.arrival.kind is ArrivalKind.CLOSED:
        raise ConfigError("arrival", "a closed loop slows down with the system; latency would not grow")
    options = DeploymentOptions(given["model"], parse_settings(given["settings"]))
    plan = Endurance(experiment, duration, sample_s, window_s=max(sample_s, duration / NUM_WINDOWS))
    pairs = pair_experiments(experiment, num_pairs, pair_s) if num_pairs else ()
    with open_deployment(spec, options) as target:
        with request_bar(console, target.name, experiment.spec.num_requests) as advance:
            result = endure(plan, target, advance)
        write_result(out, result, EnduranceResult)  # whatever becomes of the control
        if pairs:
            with open_deployment(spec, options) as fresh:
                control = against_fresh(console, pairs, pair_s, {Side.SOAKED: target, Side.FRESH: fresh})
            result = replace(result, control=control)
            write_result(out, result, EnduranceResult)
    _show(console, result, out)
    if result.grew:
        raise SystemExit(1)


def against_fresh(console: Console, pairs: Sequence[Experiment], pair_s: float, targets: dict[Side, Target]) -> Control:
    """Both serve, and one at a time has something to do. NotReadyError: one does not answer."""
    pools = {side: asyncio.run(_pool(target)) for side, target in targets.items()}
    num_requests = 2 * sum(each.spec.num_requests for each in pairs)
    with request_bar(console, "against a fresh one", num_requests) as advance:
        found = run_pairs(len(pairs) - 1, pair_runner(pairs, targets, advance))
    return Control(pair_s, pools[Side.SOAKED], pools[Side.FRESH], found, judge_pairs(found))


async def _pool(target: Target) -> Pool:
    statistics = await pool_of(target)
    return Pool(statistics.num_blocks, statistics.num_cached_blocks)


def _show(console: Console, result: EnduranceResult, out: Path) -> None:
    console.print(judgement_table(result))
    console.print(totals(result))
    if result.control is not None:
        console.print(control_table(result.control))
        console.print(control_totals(result.control))
    console.print(f"written to {out}; plot it with: tandem bench plot {out}")

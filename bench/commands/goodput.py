"""`tandem bench goodput`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench.commands.options import deployment_options, experiment_of, measuring_options
from bench.deployment.open import Target, open_deployment, parse_deployment
from bench.display import goodput_table, new_console, request_bar
from bench.experiment import NUM_LONE_REQUESTS, Experiment, lone_slo, run_once
from bench.goodput import TARGET_ATTAINMENT, Search, find_goodput
from bench.load.metrics import Slo
from bench.results import DeploymentGoodput, GoodputResult, Run, provenance, write_result
from bench.workloads.arrivals import ArrivalKind
from bench.workloads.build import at_rate
from tandem.errors import ConfigError


@click.command()
@click.argument("deployments", nargs=-1, required=True)
@click.option("--target", default=TARGET_ATTAINMENT, show_default=True, type=click.FloatRange(0, 1, min_open=True))
@click.option("--max-runs", default=12, show_default=True, type=click.IntRange(1), help="Of each deployment.")
@measuring_options
def goodput(deployments: Sequence[str], target: float, max_runs: int, out: Path, **given: Any) -> None:
    """Find the highest rate at which enough requests meet both SLOs, for each of the DEPLOYMENTS.

    The search starts at --rate. Without --slo it is 7.5 times the TTFT and 10 times the TPOT of a lone request to the
    first deployment, for all of them.
    """
    console = new_console()
    specs = [parse_deployment(name) for name in deployments]
    experiment, options = experiment_of(given), deployment_options(given)
    if experiment.spec.arrival.kind is ArrivalKind.CLOSED:
        raise ConfigError("arrival", "a closed loop has no rate")
    search = Search(experiment.spec.rate_per_s, target=target, max_runs=max_runs)
    found: list[DeploymentGoodput] = []
    slo = experiment.slo
    for spec in specs:
        with open_deployment(spec, options) as opened:
            slo = slo or _lone_slo(console, experiment, opened)
            found.append(_search(console, replace(experiment, slo=slo), opened, search))
            result = GoodputResult(provenance(), slo, target, tuple(found))
            write_result(out, result, GoodputResult)  # what is found stays, whatever becomes of the next
    console.print(goodput_table(found))
    console.print(f"written to {out}; plot it with: tandem bench plot {out}")


def _lone_slo(console: Console, experiment: Experiment, target: Target) -> Slo:
    with request_bar(console, f"{target.name}, requests alone", NUM_LONE_REQUESTS) as advance:
        slo = lone_slo(experiment, target, advance)
    console.print(f"SLO: TTFT {slo.ttft_ms:.0f} ms, TPOT {slo.tpot_ms:.1f} ms")
    return slo


def _search(console: Console, experiment: Experiment, target: Target, search: Search) -> DeploymentGoodput:
    runs: list[Run] = []

    def measure(rate_per_s: float) -> float:
        at = replace(experiment, spec=at_rate(experiment.spec, rate_per_s))
        title = f"{target.name} at {rate_per_s:.3f}/s"
        with request_bar(console, title, experiment.spec.num_requests) as advance:
            runs.append(run_once(at, target, f"rate {rate_per_s}", advance))
        return runs[-1].summary.attainment or 0.0

    return DeploymentGoodput(target.name, find_goodput(measure, search), tuple(runs))

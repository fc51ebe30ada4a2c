"""`tandem bench compare`."""

from pathlib import Path
from typing import Any

import click

from bench.commands.options import deployment_options, experiment_of, measuring_options
from bench.compare import ratios, turns
from bench.deployment.open import DeploymentSpec, open_deployment, parse_deployment
from bench.display import new_console, ratio_table, request_bar, run_table
from bench.experiment import run_once
from bench.results import CompareResult, Run, provenance, write_result
from tandem.errors import ConfigError


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@measuring_options
def compare(first: str, second: str, rounds: int, out: Path, **given: Any) -> None:
    """Run a workload against the deployments FIRST and SECOND in turn; SECOND's numbers over FIRST's, with spread.

    Each is started for its run and ended after it, so that neither is in the other's way.
    """
    if first == second:
        raise ConfigError("second", f"{second} cannot be compared with itself")
    console = new_console()
    specs = {name: parse_deployment(name) for name in (first, second)}
    experiment, options = experiment_of(given), deployment_options(given)
    runs: list[Run] = []

    def measure(spec: DeploymentSpec, number: int) -> Run:
        title = f"round {number + 1} of {rounds}: {spec.name}"
        num_requests = experiment.spec.num_requests
        with open_deployment(spec, options) as target, request_bar(console, title, num_requests) as advance:
            return run_once(experiment, target, f"round {number}", advance)

    for number, order in enumerate(turns(first, second, rounds)):
        runs += [measure(specs[name], number) for name in order]
    found = ratios(*([run.summary for run in runs if run.deployment == name] for name in (first, second)))
    write_result(out, CompareResult(provenance(), tuple(runs), found), CompareResult)
    console.print(run_table(runs[-2:]))
    console.print(ratio_table(first, second, found))
    console.print(f"the tables' first is the last round; all of them are in {out}")

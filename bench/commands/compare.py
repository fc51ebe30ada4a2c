"""`tandem bench compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench.commands.options import deployment_options, experiment_of, measuring_options
from bench.compare import ratios, turns
from bench.deployment.open import Target, open_all, parse_deployments
from bench.display import new_console, queue_table, ratio_table, replica_table, request_bar, run_table
from bench.experiment import run_once
from bench.results import CompareResult, Run, provenance, write_result
from tandem.errors import ConfigError


@click.command()
@click.argument("deployments", nargs=-1, required=True)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@measuring_options
def compare(deployments: Sequence[str], rounds: int, out: Path, **given: Any) -> None:
    """Run a workload against the DEPLOYMENTS in turn; each other one's numbers over the first's, with spread.

    All are started first; only one has requests at a time.
    """
    specs = parse_deployments(deployments)
    if len(specs) < 2:
        raise ConfigError("deployments", f"{specs[0].name} cannot be compared with itself; name two or more")
    console = new_console()
    experiment, options = experiment_of(given), deployment_options(given)
    runs: list[Run] = []

    def measure(target: Target, number: int) -> Run:
        title = f"round {number + 1} of {rounds}: {target.name}"
        with request_bar(console, title, experiment.spec.num_requests) as advance:
            return run_once(experiment, target, f"round {number}", advance)

    with open_all(specs, options) as opened:
        targets = {target.name: target for target in opened}
        for number, order in enumerate(turns(list(targets), rounds)):
            runs += [measure(targets[name], number) for name in order]
    by_name = {name: [run.summary for run in runs if run.deployment == name] for name in targets}
    found = ratios(by_name)
    write_result(out, CompareResult(provenance(), tuple(runs), found), CompareResult)
    console.print(run_table(runs[-len(specs) :]))
    console.print(ratio_table(specs[0].name, found))
    if any(run.summary.queue_ms for run in runs):
        console.print(queue_table(runs))
    if any(run.computed_by_replica for run in runs):
        console.print(replica_table(runs))
    console.print(f"the first table is the last round; all of them are in {out}")

"""`tandem bench run`."""

from pathlib import Path
from typing import Any

import click

from bench.commands.options import deployment_options, experiment_of, measuring_options
from bench.deployment.open import open_deployment, parse_deployment
from bench.display import new_console, queue_table, request_bar, run_table
from bench.experiment import run_once
from bench.results import RunResult, provenance, write_result


@click.command()
@click.argument("deployment", default="semi-pd")
@measuring_options
def run(deployment: str, out: Path, **given: Any) -> None:
    """Run one workload against one DEPLOYMENT: latencies, throughput, attainment."""
    console = new_console()
    spec, experiment, options = parse_deployment(deployment), experiment_of(given), deployment_options(given)
    num_requests = experiment.spec.num_requests
    with open_deployment(spec, options) as target, request_bar(console, target.name, num_requests) as advance:
        result = run_once(experiment, target, "run", advance)
    write_result(out, RunResult(provenance(), (result,)), RunResult)
    console.print(run_table([result]))
    if result.summary.queue_ms:
        console.print(queue_table([result]))
    console.print(f"written to {out}")

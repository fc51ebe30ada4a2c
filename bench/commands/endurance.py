"""`tandem bench endurance`."""

from math import ceil
from pathlib import Path
from typing import Any

import click

from bench.commands.options import experiment_of, lasting_options
from bench.deployment.open import DeploymentOptions, open_deployment, parse_local
from bench.deployment.settings import parse_settings
from bench.display import new_console, request_bar
from bench.endurance.results import EnduranceResult, judgement_table, totals
from bench.endurance.run import Endurance, endure
from bench.results import write_result
from bench.workloads.arrivals import ArrivalKind
from tandem.errors import ConfigError

NUM_WINDOWS = 120


@click.command()
@click.argument("deployment", default="semi-pd")
@click.option("--duration", default=3600.0, show_default=True, type=click.FloatRange(1), help="Seconds of load.")
@click.option("--sample-s", default=5.0, show_default=True, type=click.FloatRange(0.05), help="Between two looks.")
@lasting_options
def endurance(deployment: str, duration: float, sample_s: float, out: Path, **given: Any) -> None:
    """Load one DEPLOYMENT for a long time: do memory, descriptors, threads or latency grow?

    The first third is warm-up. Exit status 1: something grew by more than is allowed, and by more than noise.
    """
    console = new_console()
    spec = parse_local(deployment)
    experiment = experiment_of({**given, "num_requests": ceil(duration * given["rate"])})
    if experiment.spec.arrival.kind is ArrivalKind.CLOSED:
        raise ConfigError("arrival", "a closed loop slows down with the system; latency would not grow")
    options = DeploymentOptions(given["model"], parse_settings(given["settings"]))
    plan = Endurance(experiment, duration, sample_s, window_s=max(sample_s, duration / NUM_WINDOWS))
    with (
        open_deployment(spec, options) as target,
        request_bar(console, target.name, experiment.spec.num_requests) as advance,
    ):
        result = endure(plan, target, advance)
    write_result(out, result, EnduranceResult)
    console.print(judgement_table(result))
    console.print(totals(result))
    console.print(f"written to {out}; plot it with: tandem bench plot {out}")
    if result.grew:
        raise SystemExit(1)

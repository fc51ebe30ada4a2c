"""`tandem bench overload`."""

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench.commands.options import experiment_of, lasting_options
from bench.deployment.open import DeploymentOptions, DeploymentSpec, open_deployment, parse_local
from bench.deployment.settings import parse_settings
from bench.display import new_console, request_bar
from bench.experiment import NUM_LONE_REQUESTS, Experiment, lone_slo
from bench.goodput import Search
from bench.load.metrics import Slo
from bench.overload.results import LoadedRun, OverloadResult, overload_table
from bench.overload.run import Overload, capacity, num_due
from bench.results import WorkloadFacts, provenance, write_result
from bench.workloads.arrivals import ArrivalKind
from tandem.errors import ConfigError


@click.command()
@click.argument("deployment", default="semi-pd")
@click.option("--factor", default=3.0, show_default=True, type=click.FloatRange(1), help="Times the capacity.")
@click.option("--duration", default=300.0, show_default=True, type=click.FloatRange(1), help="Seconds of overload.")
@click.option("--peak-s", default=60.0, show_default=True, type=click.FloatRange(1), help="Seconds at the capacity.")
@click.option("--capacity", "known_per_s", type=float, help="Requests a second, where known; default: searched for.")
@click.option("--probe-s", default=20.0, show_default=True, type=click.FloatRange(1), help="Seconds of each probe.")
@click.option("--max-probes", default=8, show_default=True, type=click.IntRange(1))
@click.option("--niceness", default=0, show_default=True, help="Of the load generator; below 0 as root alone.")
@lasting_options
def overload(
    deployment: str,
    *,
    factor: float,
    duration: float,
    peak_s: float,
    known_per_s: float | None,
    probe_s: float,
    max_probes: int,
    niceness: int,
    out: Path,
    **given: Any,
) -> None:
    """Load DEPLOYMENT with a multiple of what it sustains: what goodput is left, and how soon is the rest refused?

    The gateway and the controller are told the SLO as what is promised. The search for what is sustained begins at
    --rate.
    """
    console = new_console()
    deployment_spec = parse_local(deployment)
    experiment = experiment_of({**given, "num_requests": max(NUM_LONE_REQUESTS, ceil(given["rate"] * probe_s))})
    experiment = replace(experiment, niceness=niceness)
    spec = experiment.spec
    if spec.arrival.kind is ArrivalKind.CLOSED:
        raise ConfigError("arrival", "a closed loop is never overloaded")
    options = DeploymentOptions(given["model"], parse_settings(given["settings"]))
    slo = experiment.slo or _lone_slo(console, deployment_spec, options, experiment)
    console.print(f"SLO: TTFT {slo.ttft_ms:.0f} ms, TPOT {slo.tpot_ms:.1f} ms")
    with open_deployment(deployment_spec, promising(options, slo)) as target:
        loads = Overload(experiment, slo, target)

        def measure(rate_per_s: float, seconds: float = probe_s) -> LoadedRun:
            with request_bar(console, f"{rate_per_s:.3f}/s", num_due(rate_per_s, seconds)) as advance:
                return loads.run(rate_per_s, seconds, advance)

        search = Search(spec.rate_per_s, max_probes=max_probes)
        sustained_per_s = known_per_s or capacity(measure, search, target.name)
        peak, over = measure(sustained_per_s, peak_s), measure(factor * sustained_per_s, duration)
    facts = WorkloadFacts(spec.name, spec.arrival.text, over.num_requests, over.rate_per_s, spec.seed)
    result = OverloadResult(provenance(), target.name, facts, slo, factor, peak, over)
    write_result(out, result, OverloadResult)
    console.print(overload_table(result))
    console.print(f"written to {out}")


def promising(options: DeploymentOptions, slo: Slo) -> DeploymentOptions:
    """Its services promise the SLO, but for what they were told themselves."""
    settings = options.settings
    gateway = {"admit-ttft-ms": slo.ttft_ms, "admit-tpot-ms": slo.tpot_ms, **settings.get("gateway", {})}
    controller = {"slo-ttft-ms": slo.ttft_ms, "slo-tpot-ms": slo.tpot_ms, **settings.get("controller", {})}
    return replace(options, settings={**settings, "gateway": gateway, "controller": controller})


def _lone_slo(console: Console, spec: DeploymentSpec, options: DeploymentOptions, experiment: Experiment) -> Slo:
    """The deployment is started for it alone: services are told at their start."""
    with open_deployment(spec, options) as target, request_bar(console, "alone", NUM_LONE_REQUESTS) as advance:
        return lone_slo(experiment, target, advance)

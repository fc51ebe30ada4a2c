"""`tandem bench shift`."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench.commands.options import model_limits, parse_slo, tandem_options
from bench.deployment.open import (
    DeploymentKind,
    DeploymentOptions,
    DeploymentSpec,
    open_all,
    open_deployment,
    parse_deployment,
    static_flags,
)
from bench.deployment.settings import parse_settings
from bench.display import new_console, request_bar
from bench.experiment import NUM_LONE_REQUESTS, Experiment, lone_latencies
from bench.goodput import default_slo
from bench.load.metrics import Slo
from bench.results import provenance, write_result
from bench.shift.results import ShiftFacts, ShiftResult, run_table, switch_table
from bench.shift.run import ShiftExperiment, run_shift, shift_workload, turns
from bench.workloads.arrivals import Arrival, ArrivalKind
from bench.workloads.build import WorkloadSpec
from tandem.errors import ConfigError

PLANNERS = ("predictive", "semi-pd")
EVERYBODY = ("predictive", "static:50,50", "static:65,35", "static:80,20", "colocated")
NUM_WARM_UP = 4


@click.command()
@click.argument("deployments", nargs=-1)
@click.option("--phase-s", default=60.0, show_default=True, type=click.FloatRange(1), help="Seconds of one kind.")
@click.option("--phases", "num_phases", default=2, show_default=True, type=click.IntRange(2), help="Of a round.")
@click.option(
    "--rounds", "num_rounds", default=1, show_default=True, type=click.IntRange(1), help="Of each deployment."
)
@click.option(
    "--rate",
    "rate_per_s",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Requests a second.",
)
@click.option("--length-scale", default=0.25, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--seed", default=0, show_default=True)
@click.option("--drain-s", default=30.0, show_default=True, help="After the last send; then it is cut off.")
@click.option("--slo", help="TTFT_MS,TPOT_MS; default: 7.5 and 10 times a lone prompt-heavy request's to the first.")
@tandem_options
def shift(*, deployments: Sequence[str], out: Path, drain_s: float, slo: str | None, **given: Any) -> None:
    """Shift a load from prompts to answers and back, on each of the DEPLOYMENTS in turn; what did each switch cost?

    Besides the deployments of `tandem bench run` there are predictive and semi-pd, by the planner; predictive:X,Y
    starts from that split. Controllers are given the SLO that the requests are judged by.
    """
    console = new_console()
    names = deployments or EVERYBODY
    specs = [deployment_of(text) for text in names]
    facts = ShiftFacts(**{field.name: given[field.name] for field in fields(ShiftFacts)})
    options = DeploymentOptions(given["model"], parse_settings(given["settings"]))
    experiment = _experiment(given, facts, drain_s)
    promised = parse_slo(slo) if slo else _lone_slo(console, specs[0], options, experiment, facts)
    console.print(f"SLO: TTFT {promised.ttft_ms:.0f} ms, TPOT {promised.tpot_ms:.1f} ms")
    asked = ShiftExperiment(experiment, facts, promised)
    runs = []
    with open_all(specs, _with_slo(options, promised)) as targets:
        for turn in turns(names, targets, facts.num_rounds):
            title = f"{turn.name}, round {turn.round_number}"
            with request_bar(console, title, experiment.spec.num_requests) as advance:
                runs.append(run_shift(asked, turn, advance))
    result = ShiftResult(provenance(), facts, promised, tuple(runs))
    write_result(out, result, ShiftResult)
    console.print(run_table(result))
    console.print(switch_table(result))
    console.print(f"written to {out}")


def deployment_of(text: str) -> DeploymentSpec:
    """A planner's name, perhaps with the split that it starts from, or what `parse_deployment` takes. ConfigError."""
    name, _, start = text.partition(":")
    if name not in PLANNERS:
        return parse_deployment(text)
    flags = {**(static_flags(start) if start else {}), "planner": name}
    return DeploymentSpec(DeploymentKind.SEMI_PD, ",".join(f"controller.{key}={flags[key]}" for key in flags))


def _experiment(given: dict[str, Any], facts: ShiftFacts, drain_s: float) -> Experiment:
    limits = model_limits(given["model"], given["max_context"])
    num_requests = len(shift_workload(facts, limits.max_context_tokens).requests)
    spec = WorkloadSpec("shift", num_requests, facts.rate_per_s, Arrival(ArrivalKind.POISSON), limits, facts.seed)
    return Experiment(spec, NUM_WARM_UP, drain_s)


def _lone_slo(
    console: Console, first: DeploymentSpec, options: DeploymentOptions, experiment: Experiment, facts: ShiftFacts
) -> Slo:
    """The first deployment is started for it alone: controllers are told at their start."""
    workload = shift_workload(facts, experiment.spec.limits.max_context_tokens)
    if len(workload.requests) < NUM_LONE_REQUESTS:
        raise ConfigError("rate", f"brings {len(workload.requests)} requests; {NUM_LONE_REQUESTS} are sent alone first")
    with open_deployment(first, options) as target, request_bar(console, "alone", NUM_LONE_REQUESTS) as advance:
        lone = lone_latencies(experiment, target, workload, advance)
    return default_slo(lone.ttft_ms, lone.tpot_ms)


def _with_slo(options: DeploymentOptions, slo: Slo) -> DeploymentOptions:
    promised = {"slo-ttft-ms": slo.ttft_ms, "slo-tpot-ms": slo.tpot_ms}
    controller = {**promised, **options.settings.get("controller", {})}
    return replace(options, settings={**options.settings, "controller": controller})

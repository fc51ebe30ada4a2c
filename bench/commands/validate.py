"""`tandem bench validate`."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from bench.commands.micro import default_threads, numbers
from bench.commands.options import model_limits, tandem_options
from bench.deployment.open import DeploymentKind, DeploymentOptions, Target, open_deployment, parse_deployment
from bench.deployment.settings import parse_settings
from bench.display import new_console, request_bar
from bench.experiment import Experiment, run_workload
from bench.load.records import RequestRecord
from bench.micro.measure import MicroPlan
from bench.micro.shapes import Grid
from bench.results import provenance, write_result
from bench.simulate.loads import LOADS, LoadSpec
from bench.simulate.pace import CadenceSteps
from bench.validate.calibrate import ProbesSeen, between, calibrated, calibration, probe_workloads, seen_probes
from bench.validate.measure import MeasuredSteps, measured_contention, measured_steps
from bench.validate.predict import LoadAsked, Twin, compared
from bench.validate.probes import LEAST_CONTEXT_TOKENS
from bench.validate.results import LoadCompared, ValidateResult, compared_table, failed_lines
from bench.validate.system import measured_system
from bench.workloads.arrivals import Arrival, ArrivalKind
from bench.workloads.build import WorkloadSpec
from bench.workloads.request import ModelLimits, Workload
from tandem.config.settings import default_cache_dir
from tandem.errors import ConfigError
from tandem.model.metadata import read_metadata
from tandem.telemetry.logs import configure_logging

KINDS = (DeploymentKind.STATIC, DeploymentKind.COLOCATED)
SHORT_ROWS = 64  # as of `kernels.native.layers`
NUM_WARM_UP = 4
FEWEST_REQUESTS = 8  # have a 90th percentile
BACKEND = "cpu-cadence"


@click.command()
@click.argument("deployment", default="static:50,50")
@click.option(
    "--load", "loads", multiple=True, default=("sharegpt:1", "longbench:1", "shift:1.5"), show_default=True,
    help="NAME:RATE, as of tandem bench simulate; once each.",
)  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), help="The trace's file, for azure.")
@click.option("--seconds", default=100.0, show_default=True, type=click.FloatRange(1), help="Of arrivals, each load.")
@click.option("--length-scale", default=0.25, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--period", default=20.0, show_default=True, help="Seconds, of shift and square.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Of step times; one more first.")
@click.option("--batches", default="1,2,3,4,6,8,16,32", show_default=True, help="Of decode steps.")
@click.option("--contexts", default="64,512", show_default=True, help="Keys of a sequence.")
@click.option("--chunks", default="16,64,256,512", show_default=True, help="Tokens of a prefill step.")
@click.option("--seed", default=0, show_default=True)
@click.option("--drain-s", default=60.0, show_default=True, help="After the last send; then it is cut off.")
@tandem_options
def validate(*, deployment: str, loads: Sequence[str], out: Path, drain_s: float, **given: Any) -> None:
    """Predict TTFT and TPOT of a DEPLOYMENT (colocated, static:X,Y) by simulation, and measure them.

    Step times, contention and what lies around steps are measured in this run, on this machine's processor: by the
    model alone, by both phases over one memd, and on the deployment before and after each load, by prompts from one
    user and by prompts beside one answer and beside four. The loads themselves calibrate nothing.
    """
    console = new_console()
    configure_logging("bench", "error")
    if parse_deployment(deployment).kind not in KINDS:
        raise ConfigError("deployment", f"{deployment!r} is none of {', '.join(KINDS)}")
    limits = model_limits(given["model"], given["max_context"])
    asked = [_load(text, given, limits) for text in loads]
    if limits.max_context_tokens < LEAST_CONTEXT_TOKENS:
        raise ConfigError("max-context", f"{limits.max_context_tokens}: {LEAST_CONTEXT_TOKENS} are needed")
    options = _options(given)
    plan = _plan(given, limits)
    measured = _steps(console, plan, options)
    contention = measured_contention(measured.table, given["model"], BACKEND, seconds=3.0)
    cadence = CadenceSteps(plan.model.config.num_layers, SHORT_ROWS)
    system = measured_system(measured.label, measured.model, measured.steps, cadence)
    twin = Twin(replace(system, contention=contention), deployment, given["seed"], drain_s)
    experiment = Experiment(_spec(asked[0], limits), NUM_WARM_UP, drain_s)
    with open_deployment(parse_deployment(deployment), options) as target:
        measure = partial(_measured, console, experiment, target)
        found = list(_measured_loads(measure, probe_workloads(twin), asked))
    result = ValidateResult(
        provenance=provenance(),
        deployment=deployment,
        model=measured.model,
        steps=measured.steps,
        loads=tuple(_compared(twin, load) for load in found),
        cadence=cadence,
    )
    write_result(out, result, ValidateResult)
    console.print(compared_table(result))
    for line in failed_lines(result):
        console.print(line)
    console.print(f"written to {out}")


@dataclass(frozen=True, slots=True)
class _MeasuredLoad:
    """A load, what became of it, and what the probes before and after it showed."""

    asked: LoadAsked
    records: Sequence[RequestRecord]
    seen: ProbesSeen


Measure = Callable[[Workload, str], Sequence[RequestRecord]]
"""A workload, with text that the salt decides."""


def _measured_loads(
    measure: Measure, probes: Sequence[Workload], asked: Sequence[LoadAsked]
) -> Iterator[_MeasuredLoad]:
    before = _probed(measure, probes, "first")
    for load in asked:
        records = measure(load.workload, load.workload.name)
        after = _probed(measure, probes, f"after {load.workload.name}")
        yield _MeasuredLoad(load, records, between(before, after))
        before = after


def _probed(measure: Measure, probes: Sequence[Workload], place: str) -> ProbesSeen:
    """With text that no other time had: no prompt is cached."""
    return seen_probes([measure(probe, f"{probe.name}, {place}") for probe in probes])


def _compared(twin: Twin, load: _MeasuredLoad) -> LoadCompared:
    own = calibrated(twin, load.seen)
    return compared(own, load.asked, load.records, calibration(own, load.seen))


def _measured(
    console: Console, experiment: Experiment, target: Target, workload: Workload, salt: str
) -> tuple[RequestRecord, ...]:
    with request_bar(console, workload.name, len(workload.requests)) as advance:
        return run_workload(experiment, target, workload, salt, advance).records


def _load(text: str, given: dict[str, Any], limits: ModelLimits) -> LoadAsked:
    name, _, rate = text.partition(":")
    try:
        rate_per_s = float(rate)
    except ValueError:
        rate_per_s = 0.0
    if name not in LOADS or rate_per_s <= 0:
        raise ConfigError("load", f"{text!r} is not NAME:RATE with one of {', '.join(LOADS)}")
    spec = LoadSpec(
        name=name,
        duration_s=given["seconds"],
        seed=given["seed"],
        period_s=given["period"],
        data=given["data"],
        length_scale=given["length_scale"],
        context_tokens=limits.max_context_tokens,
    )
    asked = LoadAsked(spec, rate_per_s)
    if len(asked.requests) < FEWEST_REQUESTS:
        raise ConfigError("load", f"{text}: brings {len(asked.requests)} requests; {FEWEST_REQUESTS} are needed")
    return asked


def _options(given: dict[str, Any]) -> DeploymentOptions:
    """Shares as they are simulated, whatever the machine has."""
    settings = parse_settings(given["settings"])
    for phase in ("prefill", "decode"):
        settings[phase] = {"partition-backend": BACKEND, **settings.get(phase, {})}
    return DeploymentOptions(given["model"], settings)


def _plan(given: dict[str, Any], limits: ModelLimits) -> MicroPlan:
    num_cores = len(os.sched_getaffinity(0))
    grid = Grid(
        threads=numbers("threads", default_threads(num_cores)),
        batches=numbers("batches", given["batches"]),
        contexts=numbers("contexts", given["contexts"]),
        chunks=numbers("chunks", given["chunks"]),
    )
    return MicroPlan(
        read_metadata(given["model"], default_cache_dir()), grid, limits.max_context_tokens, given["rounds"]
    )


def _steps(console: Console, plan: MicroPlan, options: DeploymentOptions) -> MeasuredSteps:
    with Progress(console=console) as progress:
        task = progress.add_task("steps", total=plan.num_steps)
        return measured_steps(plan, options, lambda: progress.advance(task))


def _spec(first: LoadAsked, limits: ModelLimits) -> WorkloadSpec:
    """Of the experiment: the model's limits count."""
    return WorkloadSpec(first.spec.name, len(first.requests), first.rate_per_s, Arrival(ArrivalKind.POISSON), limits)

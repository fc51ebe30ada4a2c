"""`tandem bench validate`."""

import os
from collections.abc import Sequence
from dataclasses import replace
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
from bench.simulate.step_times import Contention
from bench.simulate.systems import System, cpu_system
from bench.validate.measure import MeasuredSteps, measured_contention, measured_steps
from bench.validate.predict import LoadAsked, Twin, calibrated, compared, duet_workload, lone_workload
from bench.validate.results import ValidateResult, compared_table
from bench.workloads.arrivals import Arrival, ArrivalKind
from bench.workloads.build import WorkloadSpec
from bench.workloads.request import ModelLimits, Workload
from tandem.config.settings import MemdConfig, default_cache_dir
from tandem.errors import ConfigError
from tandem.model.metadata import ModelMetadata, read_metadata
from tandem.telemetry.logs import configure_logging

KINDS = (DeploymentKind.STATIC, DeploymentKind.COLOCATED)
SHORT_ROWS = 64  # as of `kernels.native.layers`
DEFAULT_KV_BYTES = 1 << 30
NUM_WARM_UP = 4
FEWEST_REQUESTS = 8  # have a 90th percentile
BACKEND = "cpu-cadence"


@click.command()
@click.argument("deployment", default="static:50,50")
@click.option(
    "--load", "loads", multiple=True, default=("sharegpt:0.8", "longbench:0.8", "shift:1.5"), show_default=True,
    help="NAME:RATE, as of tandem bench simulate; once each.",
)  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), help="The trace's file, for azure.")
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(1), help="Of arrivals, each load.")
@click.option("--length-scale", default=0.25, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--period", default=20.0, show_default=True, help="Seconds, of shift and square.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Of step times; one more first.")
@click.option("--batches", default="1,8,16,32", show_default=True, help="Of decode steps.")
@click.option("--contexts", default="64,512", show_default=True, help="Keys of a sequence.")
@click.option("--chunks", default="16,64,256,512", show_default=True, help="Tokens of a prefill step.")
@click.option("--seed", default=0, show_default=True)
@click.option("--drain-s", default=60.0, show_default=True, help="After the last send; then it is cut off.")
@tandem_options
def validate(*, deployment: str, loads: Sequence[str], out: Path, drain_s: float, **given: Any) -> None:
    """Predict TTFT and TPOT of a DEPLOYMENT (colocated, static:X,Y) by simulation, and measure them.

    Step times, contention and what lies between steps are measured first, in this run, on this machine's processor: by
    the model alone, by both phases over one memd, by other requests of the first load's kind from one user, and by
    long answers beside long prompts. The loads themselves calibrate nothing.
    """
    console = new_console()
    configure_logging("bench", "error")
    if parse_deployment(deployment).kind not in KINDS:
        raise ConfigError("deployment", f"{deployment!r} is none of {', '.join(KINDS)}")
    limits = model_limits(given["model"], given["max_context"])
    asked = [_load(text, given, limits) for text in loads]
    options = _options(given)
    plan = _plan(given, limits)
    measured = _steps(console, plan, options)
    contention = measured_contention(measured.table, given["model"], BACKEND, seconds=3.0)
    twin = Twin(_system(measured, plan.model, contention), deployment, drain_s)
    experiment = Experiment(_spec(asked[0], limits), NUM_WARM_UP, drain_s)
    with open_deployment(parse_deployment(deployment), options) as target:
        calibrating = (lone_workload(asked[0]), duet_workload(measured.table, limits.max_context_tokens))
        lone, duet = (_measured(console, workload, experiment, target) for workload in calibrating)
        twin = calibrated(twin, asked[0], lone, duet)
        found = [compared(twin, load, _measured(console, load.workload, experiment, target)) for load in asked]
    result = ValidateResult(
        provenance=provenance(),
        deployment=deployment,
        model=measured.model,
        steps=measured.steps,
        contention=contention,
        alone=twin.system.limits.alone,
        beside=twin.system.limits.beside,
        loads=tuple(found),
    )
    write_result(out, result, ValidateResult)
    console.print(compared_table(result))
    console.print(f"written to {out}")


def _measured(
    console: Console, workload: Workload, experiment: Experiment, target: Target
) -> tuple[RequestRecord, ...]:
    with request_bar(console, workload.name, len(workload.requests)) as advance:
        return run_workload(experiment, target, workload, workload.name, advance).records


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


def _system(measured: MeasuredSteps, model: ModelMetadata, contention: Contention) -> System:
    """The documented CPU's engine limits with this model's numbers."""
    known = cpu_system(None)
    block_bytes = MemdConfig().block_size * measured.model.kv_token_bytes
    return replace(
        known,
        table=measured.table,
        contention=contention,
        limits=replace(known.limits, num_blocks=DEFAULT_KV_BYTES // block_bytes),
        cadence=CadenceSteps(model.config.num_layers, SHORT_ROWS),
    )


def _spec(first: LoadAsked, limits: ModelLimits) -> WorkloadSpec:
    """Of the experiment: the model's limits count."""
    return WorkloadSpec(first.spec.name, len(first.requests), first.rate_per_s, Arrival(ArrivalKind.POISSON), limits)

"""`tandem bench micro`."""

import os
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from bench.commands.options import model_limits, tandem_options
from bench.deployment.open import DeploymentOptions
from bench.deployment.settings import parse_settings
from bench.display import new_console
from bench.experiment import Experiment
from bench.micro.display import cost_table, memory_table, step_table
from bench.micro.measure import MicroPlan, measure
from bench.micro.shapes import Grid
from bench.micro.table import MicroResult
from bench.results import write_result
from bench.workloads.arrivals import Arrival, ArrivalKind
from bench.workloads.build import WorkloadSpec
from tandem.config.settings import default_cache_dir
from tandem.errors import ConfigError
from tandem.model.metadata import read_metadata
from tandem.telemetry.logs import configure_logging

DRAIN_S = 120.0


@click.command()
@click.option(
    "--threads", default="", help="Comma-separated; default: 1 and every processor that this command may use."
)
@click.option("--batches", default="1,8,16,32", show_default=True, help="Of decode steps.")
@click.option("--contexts", default="128,512,1024,2048,4096", show_default=True, help="Keys of a sequence.")
@click.option("--chunks", default="128,512,1024", show_default=True, help="Tokens of a prefill step.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="One more is not counted.")
@tandem_options
def micro(*, threads: str, batches: str, contexts: str, chunks: str, rounds: int, out: Path, **given: Any) -> None:
    """Measure the parts: steps against the machine's floors, schedulers, leases, the gateway's CPU time a token."""
    console = new_console()
    configure_logging("bench", "error")
    grid = Grid(
        numbers("threads", threads or default_threads(len(os.sched_getaffinity(0)))),
        numbers("batches", batches),
        numbers("contexts", contexts),
        numbers("chunks", chunks),
    )
    limits = model_limits(given["model"], given["max_context"])
    plan = MicroPlan(read_metadata(given["model"], default_cache_dir()), grid, limits.max_context_tokens, rounds)
    spec = WorkloadSpec("sharegpt", 1, 1.0, Arrival(ArrivalKind.CLOSED, 1), limits)
    with Progress(console=console) as progress:
        task = progress.add_task("steps", total=plan.num_steps)
        experiment = Experiment(spec, num_warm_up=0, drain_s=DRAIN_S)
        options = DeploymentOptions(given["model"], parse_settings(given["settings"]))
        result = measure(plan, options, experiment, lambda: progress.advance(task))
    write_result(out, result, MicroResult)
    console.print(step_table(result))
    console.print(cost_table(result))
    console.print(memory_table(result))
    console.print(f"written to {out}")


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Comma-separated, each at least 1. ConfigError."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(option, f"{text!r} is not a list of numbers") from None
    if min(found) < 1:
        raise ConfigError(option, f"{text!r} has a number below 1")
    return found


def default_threads(num_cpus: int) -> str:
    """One and all."""
    return "1" if num_cpus == 1 else f"1,{num_cpus}"

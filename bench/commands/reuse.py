"""`tandem bench reuse`."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from bench.commands.micro import numbers
from bench.commands.options import model_limits, tandem_options
from bench.deployment.open import DeploymentOptions, open_deployment
from bench.deployment.settings import parse_settings
from bench.display import new_console
from bench.results import provenance, write_result
from bench.reuse.display import answer_table, ttft_table
from bench.reuse.results import ReuseResult
from bench.reuse.rounds import Plan, measure
from bench.reuse.summary import summarise
from bench.reuse.system import asking, parse_tandem
from bench.workloads.tokens import ordinary_tokens
from tandem.errors import ConfigError


@click.command()
@click.argument("deployment", default="semi-pd")
@click.option(
    "--lengths", default="256,512,1024,2048,4096", show_default=True, help="Prompt tokens; those that fit are asked."
)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="One more is not counted.")
@click.option("--output-tokens", default=16, show_default=True, type=click.IntRange(1), help="Compared with the cold.")
@tandem_options
def reuse(deployment: str, out: Path, **given: Any) -> None:
    """Measure TTFT of equal prompts cold, half cached and cached, in turn, of one user who asks DEPLOYMENT."""
    console = new_console()
    spec, plan = parse_tandem(deployment), plan_of(given)
    options = DeploymentOptions(given["model"], parse_settings(given["settings"]))
    with open_deployment(spec, options) as target, asking(target) as ask, Progress(console=console) as progress:
        task = progress.add_task("requests", total=plan.num_steps)
        samples = measure(plan, ask, lambda: progress.advance(task))
    result = ReuseResult(provenance(), target.name, given["model"], plan.num_output_tokens, summarise(samples))
    write_result(out, result, ReuseResult)
    console.print(ttft_table(result))
    console.print(answer_table(result))
    console.print(f"written to {out}; plot it with: tandem bench plot {out}")


def plan_of(given: Mapping[str, Any]) -> Plan:
    """ConfigError: no length fits the context."""
    limits = model_limits(given["model"], given["max_context"])
    room = limits.max_context_tokens - given["output_tokens"]
    lengths = tuple(length for length in numbers("lengths", given["lengths"]) if length <= room)
    if not lengths:
        raise ConfigError("lengths", f"{given['lengths']}: none fits {room} tokens of context")
    return Plan(lengths, given["rounds"], given["output_tokens"], ordinary_tokens(limits), uuid.uuid4().hex)

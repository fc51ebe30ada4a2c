"""`tandem bench hits`."""

import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from bench.commands.options import model_limits, tandem_options
from bench.deployment.open import DeploymentOptions, open_deployment
from bench.deployment.settings import parse_settings
from bench.display import new_console
from bench.results import WorkloadFacts, provenance, write_result
from bench.reuse.display import hits_table
from bench.reuse.results import HitsResult
from bench.reuse.system import asking, parse_local_tandem, pool_of
from bench.reuse.trace import Text, replays, serve
from bench.workloads.arrivals import Arrival, ArrivalKind
from bench.workloads.build import WorkloadSpec, build_workload
from bench.workloads.tokens import ordinary_tokens
from bench.workloads.traces import MOONCAKE_BLOCK_TOKENS


@click.command()
@click.argument("deployment", default="semi-pd")
@click.option("--data", type=click.Path(path_type=Path), help="The Mooncake trace's file.")
@click.option("--num-requests", default=500, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, help="Another one is another part of the trace.")
@click.option(
    "--block-tokens",
    default=16,
    show_default=True,
    type=click.IntRange(1, MOONCAKE_BLOCK_TOKENS),
    help="That become of the trace's blocks of 512; its lengths shrink alike.",
)
@tandem_options
def hits(deployment: str, out: Path, **given: Any) -> None:
    """Send a trace's prompts to DEPLOYMENT one after another: reused tokens, and what replays say is attainable.

    The cache's size is the pool's: --set memd.kv-bytes=BYTES.
    """
    console = new_console()
    spec, asked = parse_local_tandem(deployment), workload_of(given)
    text = Text(ordinary_tokens(asked.limits), uuid.uuid4().hex)
    requests = build_workload(asked).requests
    options = DeploymentOptions(given["model"], parse_settings(given["settings"]))
    with open_deployment(spec, options) as target, asking(target) as ask, Progress(console=console) as progress:
        task = progress.add_task("requests", total=len(requests))
        served = serve(requests, text, ask, lambda: progress.advance(task))
        pool = asyncio.run(pool_of(target))
    result = HitsResult(
        provenance=provenance(),
        deployment=target.name,
        model=given["model"],
        workload=WorkloadFacts(asked.name, asked.arrival.text, asked.num_requests, asked.rate_per_s, asked.seed),
        block_size=pool.fingerprint.block_size,
        num_blocks=pool.num_blocks,
        num_spare_blocks=pool.num_spare_blocks,
        num_prompt_tokens=tuple(len(each.prompt) for each in served),
        num_cached_tokens=tuple(each.num_cached_tokens for each in served),
        replays=replays(served, pool),
    )
    write_result(out, result, HitsResult)
    console.print(hits_table(result))
    console.print(f"written to {out}; plot it with: tandem bench plot {out}")


def workload_of(given: Mapping[str, Any]) -> WorkloadSpec:
    """The trace, with one user."""
    return WorkloadSpec(
        name="mooncake",
        num_requests=given["num_requests"],
        rate_per_s=1.0,
        arrival=Arrival(ArrivalKind.CLOSED, 1),
        limits=model_limits(given["model"], given["max_context"]),
        seed=given["seed"],
        data=given["data"],
        length_scale=given["block_tokens"] / MOONCAKE_BLOCK_TOKENS,
    )

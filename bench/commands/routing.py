"""`tandem bench routing`."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from bench.commands.options import numbers
from bench.display import new_console
from bench.policies.deployment import Setting
from bench.policies.gateway import GatewayOptions
from bench.policies.loads import TraceLoad
from bench.results import provenance, write_result
from bench.routing.results import RoutingResult, change_table, routing_table
from bench.routing.simulation import FleetSetting
from bench.routing.trials import Job, run_trial
from bench.simulate.contest import parse_split
from bench.simulate.systems import cpu_system, h200_system
from tandem.routing.routers import ROUTERS

_PATH = click.Path(path_type=Path)
_POSITIVE = click.FloatRange(0, min_open=True)
MAX_WAIT_S = 30.0


@click.command()
@click.option("--data", type=_PATH, help="The Mooncake trace's file.")
@click.option(
    "--device", type=click.Choice(["cpu", "h200"]), default="h200", show_default=True, help="h200: plausible."
)
@click.option("--split", default="73,27", show_default=True, help="Of the phases, X,Y in percent.")
@click.option("--replicas", default=4, show_default=True, type=click.IntRange(1))
@click.option("--rates", default="16,22,28", show_default=True, help="Requests a second, one after another.")
@click.option("--seeds", default="0,8,16", show_default=True, help="Parts of the trace, 500 requests apart.")
@click.option("--num-requests", default=4000, show_default=True, type=click.IntRange(2))
@click.option("--length-scale", default=0.25, show_default=True, type=_POSITIVE, help="Of prompts and answers.")
@click.option(
    "--news-delay", default=0.05, show_default=True, type=click.FloatRange(0), help="To the gateway, seconds."
)
@click.option("--backlog", default=4096, show_default=True, type=click.IntRange(1), help="Of prefill, tokens.")
@click.option("--change/--no-change", default=False, help="Also with a replica that leaves, and one that joins.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option("--out", type=_PATH, default=Path("routing-result.json"), show_default=True, help="The JSON file.")
def routing(out: Path, jobs: int, **given: Any) -> None:
    """Simulate routers over replicas with caches of their own, on a trace whose prompts share blocks.

    The routers, orders and schedulers are those that serve; step times come from a table. Every request comes to its
    end. Shown are TTFT, hits and balance. A change is in the middle of the arrivals.
    """
    console = new_console()
    system = cpu_system() if given["device"] == "cpu" else h200_system()
    gateway = GatewayOptions("kvshare", MAX_WAIT_S, given["backlog"])
    replica = Setting(system, parse_split(given["split"]), gateway, given["news_delay"])
    todo = list(_jobs(replica, given))
    with Progress(console=console) as progress, ProcessPoolExecutor(jobs) as pool:
        trials = tuple(progress.track(pool.map(run_trial, todo), total=len(todo), description="simulations"))
    result = RoutingResult(
        provenance=provenance(),
        device=system.table.label,
        load=f"mooncake, {given['num_requests']} requests, lengths x {given['length_scale']:g}",
        num_replicas=given["replicas"],
        news_delay_s=given["news_delay"],
        trials=trials,
    )
    write_result(out, result, RoutingResult)
    console.print(routing_table(result))
    if given["change"]:
        console.print(change_table(result))
    console.print(f"written to {out}")


def _jobs(replica: Setting, given: dict[str, Any]) -> Iterator[Job]:
    for rate_per_s in numbers("rates", given["rates"]):
        changes = (None, given["num_requests"] / rate_per_s / 2) if given["change"] else (None,)
        for seed in numbers("seeds", given["seeds"]):
            load = TraceLoad(given["data"], given["num_requests"], rate_per_s, int(seed), given["length_scale"])
            for change_s in changes:
                for router in ROUTERS:
                    setting = FleetSetting(replica, given["replicas"], router, change_s)
                    yield Job(setting, load)

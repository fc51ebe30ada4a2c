"""`tandem bench policies`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from bench.commands.options import numbers
from bench.display import new_console
from bench.policies.deployment import Setting
from bench.policies.gateway import GatewayOptions
from bench.policies.loads import TraceLoad
from bench.policies.results import BASELINE, PoliciesResult, flood_table, order_table
from bench.policies.trials import run_trial
from bench.results import provenance, write_result
from bench.simulate.contest import parse_split
from bench.simulate.systems import cpu_system, h200_system
from tandem.scheduler.policies import POLICIES

_PATH = click.Path(path_type=Path)
_POSITIVE = click.FloatRange(0, min_open=True)


@click.command()
@click.option("--data", type=_PATH, help="The Mooncake trace's file.")
@click.option(
    "--device", type=click.Choice(["cpu", "h200"]), default="h200", show_default=True, help="h200: plausible."
)
@click.option("--split", default="73,27", show_default=True, help="Of the phases, X,Y in percent.")
@click.option("--rates", default="4,5.5,7", show_default=True, help="Requests a second, one after another.")
@click.option("--seeds", default="0,6,12", show_default=True, help="Parts of the trace, 500 requests apart.")
@click.option("--num-requests", default=3000, show_default=True, type=click.IntRange(1))
@click.option("--length-scale", default=0.25, show_default=True, type=_POSITIVE, help="Of prompts and answers.")
@click.option("--tenants", default=1, show_default=True, type=click.IntRange(1), help="That the requests belong to.")
@click.option(
    "--flood", default=0.0, show_default=True, help="Requests a second of one more tenant, for half the time."
)
@click.option("--max-wait", default=30.0, show_default=True, type=_POSITIVE, help="The bound of kvshare, seconds.")
@click.option("--backlog", default=4096, show_default=True, type=click.IntRange(1), help="Of prefill, tokens.")
@click.option("--out", type=_PATH, default=Path("policies-result.json"), show_default=True, help="The JSON file.")
def policies(out: Path, **given: Any) -> None:
    """Simulate the gateway's orders on a trace whose prompts share blocks: TTFT, waiting, and what a flood does.

    The orders and schedulers are those that serve; step times come from a table. Every request comes to its end.
    """
    console = new_console()
    setting, loads = _setting(given), list(_loads(given))
    with Progress(console=console) as progress:
        task = progress.add_task("simulations", total=len(loads) * len(POLICIES))
        trials = []
        for load in loads:
            for policy in POLICIES:
                trials.append(run_trial(setting, policy, load))
                progress.advance(task)
    result = PoliciesResult(
        provenance=provenance(),
        device=setting.system.table.label,
        load=f"mooncake, {given['num_requests']} requests, lengths x {given['length_scale']:g}",
        max_wait_s=given["max_wait"],
        trials=tuple(trials),
    )
    write_result(out, result, PoliciesResult)
    console.print(order_table(result))
    if given["flood"]:
        console.print(flood_table(result))
    console.print(f"written to {out}")


def _setting(given: dict[str, Any]) -> Setting:
    system = cpu_system() if given["device"] == "cpu" else h200_system()
    return Setting(system, parse_split(given["split"]), GatewayOptions(BASELINE, given["max_wait"], given["backlog"]))


def _loads(given: dict[str, Any]) -> Iterator[TraceLoad]:
    floods = (0.0, given["flood"]) if given["flood"] else (0.0,)
    for rate_per_s in numbers("rates", given["rates"]):
        for seed in numbers("seeds", given["seeds"]):
            for flood in floods:
                yield TraceLoad(
                    data=given["data"],
                    num_requests=given["num_requests"],
                    rate_per_s=rate_per_s,
                    seed=int(seed),
                    length_scale=given["length_scale"],
                    num_tenants=given["tenants"],
                    flood_rate_per_s=flood,
                )

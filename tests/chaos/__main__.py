"""``python -m tests.chaos``: a seeded storm of faults over a system under load. Exit status 1: something was wrong."""

import asyncio
import json
import signal
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console

from bench.commands.soak import kv_bytes
from tandem.clock import MonotonicClock
from tests.chaos import report
from tests.chaos.between import NO_COMPILER
from tests.chaos.cases import make_cases
from tests.chaos.experiment import Run, RunPlan
from tests.chaos.links import Link
from tests.chaos.log_disk import NO_DISK
from tests.chaos.schedule import Plan, draw_schedule
from tests.chaos.stopwatch import Stopwatch
from tests.chaos.system import SERVICES, System, SystemSpec, running

NUM_LINKS = 4
LINKS = tuple(f"link{number}" for number in range(NUM_LINKS))


@click.command()
@click.option("--kills", default=300, show_default=True, type=click.IntRange(0), help="In the storm, of all services.")
@click.option("--duration", default=600.0, show_default=True, help="Of the storm, in seconds.")
@click.option("--streams", default=32, show_default=True, type=click.IntRange(1), help="Clients at once.")
@click.option("--seed", default=1, show_default=True, help="Of the schedule and the load.")
@click.option("--model", default="default", show_default=True, help="As for tandem up.")
@click.option("--cases", default=18, show_default=True, type=click.IntRange(1), help="Distinct requests.")
@click.option("--pool-blocks", default=160, show_default=True, type=click.IntRange(64), help="KV blocks of 16 tokens.")
@click.option("--hang-timeout", default=3.0, show_default=True, help="Of the watchdog, in seconds.")
@click.option("--alone", default=5, show_default=True, help="Kills of each service before the storm, one by one.")
@click.option(
    "--cold", default=2, show_default=True, help="Restarts of each kind after it that load the weights again."
)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file of what was found.")
@click.option("--logs", type=click.Path(path_type=Path), help="Folder for copies of the services' logs.")
def main(
    *,
    kills: int,
    duration: float,
    streams: int,
    seed: int,
    model: str,
    cases: int,
    pool_blocks: int,
    hang_timeout: float,
    alone: int,
    cold: int,
    out: Path | None,
    logs: Path | None,
) -> None:
    """Kills, stops, cut and slow connections and full disks while clients stream; every answer is compared."""
    console = Console(width=160)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # which ends the system, too
    requests = make_cases(cases)
    with running(SystemSpec(model, kv_bytes(model, pool_blocks), hang_timeout)) as system:
        if system.disk is None:
            console.print(NO_DISK)
        if not system.between:
            console.print(NO_COMPILER)
        between, full_logs = tuple(system.between), system.disk is not None
        plan = Plan(seed, duration, kills, hang_timeout, SERVICES, LINKS, between, full_logs)
        schedule = draw_schedule(plan)
        run = Run(
            RunPlan(seed, streams, alone, cold, schedule),
            system,
            requests,
            clock=Stopwatch(MonotonicClock()),
            say=lambda text: console.print(text, markup=False),
        )
        findings = asyncio.run(run.run(_links(system)))
        if logs is not None:
            system.save_logs(logs)
    report.show(console, findings)
    if out is not None:
        out.write_text(json.dumps(report.to_json(plan, schedule, findings), indent=1))
    for line in report.violations(plan, schedule, findings):
        console.print(line, markup=False, soft_wrap=True)
    if findings.violations:
        raise SystemExit(1)


def _links(system: System) -> Mapping[str, Link]:
    return {name: Link(system.gateway_socket) for name in LINKS}


if __name__ == "__main__":
    main()

"""`tandem status`: what is asked of whom, and how it is drawn."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tandem.cli.asking import ask_controller, ask_gateway, ask_memd
from tandem.cli.deployment import Deployment, Overrides, deployment_options, resolve
from tandem.cli.health import Health
from tandem.cli.output import new_console
from tandem.cli.programs import COLOCATED, GATEWAY, parse_program
from tandem.cli.readiness import ServiceView, look
from tandem.cli.supervision import Supervisor
from tandem.errors import DeadlineError, NotReadyError, TandemError
from tandem.kv.store import StorageStatistics
from tandem.partition.status import ControllerStatus, PhaseStatus
from tandem.rpc.gateway_values import ServerStatus
from tandem.types import Phase

REFRESH_S = 1.0
MIB = 1 << 20
_STYLES = {Health.SERVING: "green", Health.NOT_SERVING: "yellow", Health.UNREACHABLE: "red"}

_T = TypeVar("_T")


@click.command()
@click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C.")
@deployment_options
def status(watch: bool, config_file: Path | None, run_dir: Path | None) -> None:
    """Show services, split, latencies, queue, rates and KV cache."""
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    console = new_console()
    console.soft_wrap = not console.is_terminal
    report = gather(deployment)
    if not watch:
        console.print(draw(report))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(draw(report), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH_S)
            live.update(draw(gather(deployment)), refresh=True)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One replica's; None for who did not answer."""

    controller: ControllerStatus | None
    storage: StorageStatistics | None


@dataclass(frozen=True, slots=True)
class Report:
    """The deployment at one moment; None for who did not answer."""

    services: dict[str, ServiceView]  # by program's name
    gateway: ServerStatus | None
    replicas: dict[int, ReplicaReport]


def gather(deployment: Deployment) -> Report:
    """Asks everyone. NotReadyError when the deployment does not run."""
    services = look(deployment, Supervisor(deployment.run_dir))
    return Report(
        services=services,
        gateway=_unless_away(lambda: ask_gateway(deployment.address(GATEWAY))) if GATEWAY in services else None,
        replicas={
            replica: _ask_replica(deployment, replica)
            for replica in sorted({parse_program(name).replica for name in services})
        },
    )


def draw(report: Report) -> RenderableType:
    """Everything as tables."""
    return Group(_draw_services(report.services), "", _draw_facts(_facts(report)))


def _ask_replica(deployment: Deployment, replica: int) -> ReplicaReport:
    return ReplicaReport(
        controller=_unless_away(lambda: ask_controller(deployment.address("controller", replica))),
        storage=_unless_away(lambda: ask_memd(deployment.address("memd", replica))),
    )


def _unless_away(ask: Callable[[], _T]) -> _T | None:
    try:
        return ask()
    except (NotReadyError, DeadlineError):
        return None
    except TandemError as error:
        raise NotReadyError(f"status: {error}") from error


def _draw_services(services: dict[str, ServiceView]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("service", "health", "process", "pid", "up"):
        table.add_column(title, justify="right" if title in ("pid", "up") else "left")
    for name, view in services.items():
        health = Text(view.health.replace("_", " ").lower(), _STYLES[view.health])
        process = view.process
        where = (str(process.pid), _duration(process.uptime_s)) if process.pid else ("", "")
        table.add_row(name, health, process.state.lower(), *where)
    return table


def _draw_facts(facts: list[tuple[str, str]]) -> Text:
    lines = (Text.assemble((f"  {name:<10} ", "dim"), text) for name, text in facts)
    return Text("\n").join(lines)


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = _gateway_facts(report.gateway) if GATEWAY in report.services else []
    linked = _linked_phases(report.services)
    for number, replica in report.replicas.items():
        title = [(f"replica {number}", "")] if len(report.replicas) > 1 else []
        facts += [*title, *_controller_facts(replica.controller, linked), *_storage_facts(replica.storage)]
    return facts


def _linked_phases(services: dict[str, ServiceView]) -> frozenset[Phase]:
    """Those that have a link to the controller of their own: both in one process report as the first."""
    are_one = any(parse_program(name).service == COLOCATED for name in services)
    return frozenset({Phase.PREFILL} if are_one else Phase)


def _controller_facts(controller: ControllerStatus | None, linked: frozenset[Phase]) -> list[tuple[str, str]]:
    if controller is None:
        return [("split", "the controller does not answer")]
    split, requests = controller.decision.split, controller.requests
    shares = f"prefill {split.prefill_percent} % · decode {split.decode_percent} %"
    ttft = f"TTFT p50 {requests.ttft.p50_ms:.0f} ms, p99 {requests.ttft.p99_ms:.0f} ms"
    tpot = f"TPOT p50 {requests.tpot.p50_ms:.1f} ms, p99 {requests.tpot.p99_ms:.1f} ms"
    return [
        ("split", f"{shares} ({controller.planner}: {controller.decision.reason})"),
        *((f"{phase.phase}", _phase_fact(phase)) for phase in controller.phases if phase.phase in linked),
        ("latency", f"{ttft} · {tpot} · {_counted(requests.num_observed_total, 'request')} seen"),
    ]


def _phase_fact(phase: PhaseStatus) -> str:
    if not phase.connected:
        return "not connected to the controller"
    step = phase.statistics.step
    steps = f"step p50 {step.p50_ms:.1f} ms, p99 {step.p99_ms:.1f} ms · {phase.statistics.tokens_per_s:.1f} tokens/s"
    return f"{steps} · {phase.applied_detail}" if phase.applied_detail else steps


def _gateway_facts(gateway: ServerStatus | None) -> list[tuple[str, str]]:
    if gateway is None:
        return [("queue", "the gateway does not answer")]
    running = f"{gateway.num_prefilling} in prefill · {gateway.num_decoding} in decode"
    rates = f"{gateway.requests_per_s:.2f} requests/s · {gateway.tokens_per_s:.1f} tokens/s"
    requests, tokens = gateway.num_requests_total, gateway.num_output_tokens_total
    totals = f"{_counted(requests, 'request')} · {_counted(tokens, 'token')} since start"
    return [("queue", f"{gateway.num_waiting} waiting · {running}"), ("rates", f"{rates} · {totals}")]


def _storage_facts(storage: StorageStatistics | None) -> list[tuple[str, str]]:
    if storage is None:
        return [("kv", "memd does not answer")]
    percent = 100 * storage.num_leased_blocks / max(1, storage.num_blocks)
    sequences = _counted(storage.num_sequences, "sequence")
    rest = f"{storage.num_spare_blocks} spare, {storage.num_cached_blocks} cached, {storage.num_free_blocks} free"
    return [
        ("kv", f"{percent:.1f} % of {storage.num_blocks} blocks leased · {rest} · {sequences}"),
        ("memory", f"weights {storage.weight_bytes // MIB} MiB, KV {storage.kv_bytes // MIB} MiB"),
    ]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

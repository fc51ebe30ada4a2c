"""`tandem controller`: what it has decided and why, and the split by hand."""

import os
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.table import Column, Table

from tandem.cli.deployment import Overrides, deployment_options, replica_option, resolve
from tandem.cli.output import new_console
from tandem.errors import InvalidRequestError
from tandem.partition.planner import AdmissionAdvice
from tandem.partition.status import ControllerStatus, DecisionRecord
from tandem.rpc.controller_client import ControllerClient
from tandem.types import Split

NANO = 1e9


@click.group()
def controller() -> None:
    """Show and steer what decides the split."""


@controller.command()
@replica_option
@deployment_options
def status(replica: int, config_file: Path | None, run_dir: Path | None) -> None:
    """Show the split in force and what each phase has made of it."""
    with _client(replica, config_file, run_dir) as client:
        new_console().print(status_table(client.status()))


@controller.command()
@replica_option
@deployment_options
def history(replica: int, config_file: Path | None, run_dir: Path | None) -> None:
    """Show the newest decisions: seen, predicted, decided, applied."""
    with _client(replica, config_file, run_dir) as client:
        new_console().print(history_table(client.history()))


@controller.command(name="set")
@click.argument("split", metavar="X,Y")
@replica_option
@deployment_options
def set_split(split: str, *, replica: int, config_file: Path | None, run_dir: Path | None) -> None:
    """Fix the split at X percent for prefill and Y for decode; the planner pauses."""
    with _client(replica, config_file, run_dir) as client:
        click.echo(f"decision {client.set_split(parse_split(split))}; the planner is paused")


@controller.command()
@replica_option
@deployment_options
def pause(replica: int, config_file: Path | None, run_dir: Path | None) -> None:
    """Keep the split in force; the planner is not asked."""
    with _client(replica, config_file, run_dir) as client:
        client.set_paused(True)
    click.echo("the planner is paused")


@controller.command()
@replica_option
@deployment_options
def resume(replica: int, config_file: Path | None, run_dir: Path | None) -> None:
    """Let the planner decide again."""
    with _client(replica, config_file, run_dir) as client:
        client.set_paused(False)
    click.echo("the planner decides")


def parse_split(text: str) -> Split:
    """``X,Y`` in percent. InvalidRequestError: they are none, or out of (0, 100]."""
    try:
        prefill_percent, decode_percent = (int(part) for part in text.split(","))
    except ValueError:
        raise InvalidRequestError("split", f"{text!r} is not X,Y in percent, for instance 40,60") from None
    if not all(0 < percent <= 100 for percent in (prefill_percent, decode_percent)):
        raise InvalidRequestError("split", f"{text!r} has a share outside (0, 100]")
    return Split(prefill_percent, decode_percent)


def status_table(status: ControllerStatus) -> Table:
    """The decision in force, then a row a phase."""
    state = "paused" if status.is_paused else "decides"
    decision = status.decision
    columns = (Column(name, overflow="fold") for name in ("phase", "share", "process", "backend", "in force"))
    table = Table(*columns, title=f"planner {status.planner} {state}")
    table.caption = f"decision {decision.decision_id}: {decision.reason}"
    if status.admission is not None:
        table.caption += f"\nadmit {_admitted(status.admission)}: {status.admission.reason}"
    for phase in status.phases:
        share = f"{decision.split.percent(phase.phase)} %"
        process = str(phase.pid) if phase.connected else "gone"
        applied = f"decision {phase.applied_decision_id}: {phase.applied_detail}" if phase.applied_decision_id else "-"
        table.add_row(phase.phase, share, process, phase.partition_backend, applied)
    return table


def history_table(records: tuple[DecisionRecord, ...]) -> Table:
    """A row a decision, oldest first; latencies are those of the requests seen last. 80 columns cut nothing."""
    whole = (Column(name, no_wrap=True) for name in ("id", "UTC", "split"))
    folded = ("TTFT p99", "TPOT p99", "predicted", "admit", "applied", "reason")
    table = Table(*whole, *(Column(name, overflow="fold") for name in folded))
    for record in records:
        split = f"{record.decision.split.prefill_percent},{record.decision.split.decode_percent}"
        when = datetime.fromtimestamp(record.unix_ns / NANO, UTC).strftime("%H:%M:%S")
        latencies = (f"{record.seen.ttft.p99_ms:.0f} ms", f"{record.seen.tpot.p99_ms:.1f} ms")
        predicted = f"{100 * record.predicted.attainment:.0f} %" if record.predicted else "-"
        applied = ", ".join(_applied(record)) or "-"
        admitted = _admitted(record.admission) if record.admission else "-"
        decision = record.decision
        table.add_row(str(decision.decision_id), when, split, *latencies, predicted, admitted, applied, decision.reason)
    return table


def _admitted(advice: AdmissionAdvice) -> str:
    return f"{100 * advice.admit_share:.0f} %"


def _applied(record: DecisionRecord) -> list[str]:
    return [
        f"{each.phase} after {each.after_ms:.0f} ms"
        + (" (needs a new process)" if each.answer.restart_required else f" (stood {each.answer.apply_ms:.1f} ms)")
        for each in record.applied
    ]


def _client(replica: int, config_file: Path | None, run_dir: Path | None) -> ControllerClient:
    return ControllerClient(resolve(Overrides(config_file, run_dir), os.environ).address("controller", replica))

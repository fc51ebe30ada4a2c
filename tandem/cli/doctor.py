"""`tandem doctor`: what this machine offers, and what each part of a deployment would make of it."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from tandem.cli.attach_check import check_attach
from tandem.cli.checkup import Finding, Surroundings, examine_device, examine_machine, examine_shares
from tandem.cli.deployment import Deployment, Overrides, deployment_options, resolve
from tandem.cli.mps import environments, find_mps
from tandem.cli.output import new_console
from tandem.cli.sm_check import check_sms
from tandem.cli.supervision import DaemonState, Supervisor, child_environment
from tandem.clock import MonotonicClock
from tandem.device.cuda.look import free_bytes_from_child, look_from_child
from tandem.errors import DeviceError
from tandem.types import Phase


@click.command()
@deployment_options
def doctor(config_file: Path | None, run_dir: Path | None) -> None:
    """Show the device and what is chosen on it.

    With the reasons, and with the shares of a running deployment.
    """
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    console = new_console()
    around = _look_around(deployment)
    for finding in examine_device(deployment, around, partial(check_attach, clock=MonotonicClock())):
        _print(console, finding)
    for finding in examine_machine(deployment, around):
        _print(console, finding)
    for finding in examine_shares(deployment, around, check_sms):
        _print(console, finding)


def _look_around(deployment: Deployment) -> Surroundings:
    """As a phase would see it: with the environment that phases are started with."""
    environ = child_environment(os.environ)
    mps = find_mps(deployment, environ, lambda: look_from_child(environ))
    phase_environ = {**environ, **environments(deployment, mps).get(Phase.DECODE, {})}
    search = look_from_child(phase_environ)
    runs = Supervisor(deployment.run_dir).state() is not DaemonState.ABSENT
    return Surroundings(search, mps, phase_environ, runs, _free_bytes(phase_environ) if search.gpu else None)


def _free_bytes(environ: Mapping[str, str]) -> int | None:
    try:
        return free_bytes_from_child(environ)
    except DeviceError:
        return None


def _print(console: Console, finding: Finding) -> None:
    console.print(Text.assemble((f"{finding.subject:<10} ", "dim"), finding.text))

"""`tandem up`, `down` and `restart`."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import psutil
from rich.console import Console

from tandem.cli import leftovers
from tandem.cli.deployment import (
    MAX_REPLICAS,
    Deployment,
    Overrides,
    deployment_options,
    make_run_dir,
    replica_option,
    resolve,
)
from tandem.cli.first_answer import show_first_answer
from tandem.cli.mps import end_client, environments, find_mps, start_mps, stop_clients, stop_mps, stop_service
from tandem.cli.output import new_console
from tandem.cli.ports import check_free
from tandem.cli.programs import Program, replica_dirs
from tandem.cli.readiness import last_words, look_with_replicas, shown_on, wait_until_serving
from tandem.cli.spares import forget_shares
from tandem.cli.supervision import KILL_MARGIN_S, DaemonState, Supervisor, render_conf
from tandem.clock import MonotonicClock
from tandem.config.local_replicas import replica_dir
from tandem.config.settings import MODES, SERVICES
from tandem.device.cuda.mps import MpsControl
from tandem.errors import ConfigError, NotReadyError
from tandem.model.default_model import fetch_default_model
from tandem.model.metadata import read_metadata

READY_TIMEOUT_S = 600.0
POLL_S = 0.25


@click.command()
@deployment_options
@click.option("--model", help="default, a GGUF file, a Hugging Face folder, or random:CONFIG.JSON.")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port of the gateway; 0 takes any free one.")
@click.option("--mode", type=click.Choice(list(MODES)), help="One process for each phase (default), or both in one.")
@click.option(
    "--replicas",
    "num_replicas",
    type=click.IntRange(1, MAX_REPLICAS),
    default=1,
    show_default=True,
    help="Of all services but the gateway, which says whose a request is.",
)
@click.option("--no-gateway", is_flag=True, help="Serve a gateway elsewhere, which names this in its `replicas`.")
@click.option("--foreground", is_flag=True, help="Stay until Ctrl-C or SIGTERM, then end everything.")
def up(
    *,
    config_file: Path | None,
    run_dir: Path | None,
    model: str | None,
    port: int | None,
    mode: str | None,
    num_replicas: int,
    no_gateway: bool,
    foreground: bool,
) -> None:
    """Start all services and show one answer.

    The default model is downloaded first (98 MB) where it is not there yet. Run again it starts only what was stopped.
    """
    console = new_console()
    overrides = Overrides(config_file, run_dir, model, port, mode, num_replicas, has_gateway=not no_gateway)
    deployment = resolve(overrides, os.environ)
    supervisor = Supervisor(deployment.run_dir)
    with _ended_on_exit(deployment, supervisor, console) if foreground else contextlib.nullcontext():
        _bring_up(deployment, supervisor, console)
        if deployment.has_gateway:
            show_first_answer(deployment, console)
        if foreground:
            console.print("Ctrl-C ends everything.")
            _stay(supervisor)


@click.command()
@deployment_options
def down(config_file: Path | None, run_dir: Path | None) -> None:
    """Let running requests end, then stop all services."""
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    _bring_down(deployment, Supervisor(deployment.run_dir), new_console())


@click.command(epilog=f"SERVICE is one of {', '.join(sorted(SERVICES))}.")
@click.argument("service", type=click.Choice(sorted(SERVICES)), metavar="SERVICE")
@replica_option
@deployment_options
def restart(service: str, *, replica: int, config_file: Path | None, run_dir: Path | None) -> None:
    """Stop and start one service, and wait until all serve."""
    console = new_console()
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    supervisor = Supervisor(deployment.run_dir)
    running = supervisor.processes()
    name = Program(service, replica).name
    if name not in running:
        raise ConfigError("SERVICE", f"{name} is no part of this deployment; there are {', '.join(sorted(running))}")
    started_s = time.monotonic()
    with console.status(f"stopping {name}"):
        stop_service(deployment, supervisor, name, find_mps(deployment, os.environ), console)
    stopped_s = time.monotonic()
    supervisor.start_service(name)
    _wait(deployment, supervisor, console)
    now_s = time.monotonic()
    console.print(f"{name} stopped in {stopped_s - started_s:.1f} s; all serving {now_s - stopped_s:.1f} s later")


def _bring_up(deployment: Deployment, supervisor: Supervisor, console: Console) -> None:
    if deployment.model == "default":
        with console.status("getting the default model"):
            fetch_default_model(deployment.cache_dir)
    read_metadata(deployment.model, deployment.cache_dir)  # what is wrong with the model is said before anything starts
    make_run_dir(deployment.run_dir, deployment.num_replicas)
    with _exclusive(deployment.run_dir):
        started_here = _ensure_started(deployment, supervisor, console)
    try:
        _wait(deployment, supervisor, console)
    except NotReadyError:
        if started_here:
            _bring_down(deployment, supervisor, console)
        raise


def _ensure_started(deployment: Deployment, supervisor: Supervisor, console: Console) -> bool:
    """Whether it had to be started. ConfigError when it runs with another configuration than is asked for."""
    mps = find_mps(deployment, os.environ)
    conf = render_conf(deployment, environments(deployment, mps))
    state = supervisor.state()
    if state is DaemonState.RUNNING:
        if not supervisor.is_started_with(conf):
            raise ConfigError("run_dir", f"{deployment.run_dir} runs with other settings; `tandem down` ends it first")
        console.print(f"already running in {deployment.run_dir}")
        supervisor.start_stopped()
        return False
    if state is DaemonState.ENDING:
        with console.status("waiting for the last one to end"):
            supervisor.wait_ended(_end_timeout_s(deployment))
    _end_leftovers(deployment, console)
    if deployment.has_gateway:
        check_free(deployment.gateway.host, deployment.gateway.port)
    for replica in range(deployment.num_replicas):
        forget_shares(replica_dir(deployment.run_dir, replica))
    console.print(f"starting {len(deployment.programs)} services in {deployment.run_dir}")
    if mps is not None:
        start_mps(mps, console)
    supervisor.start(conf)
    return True


def _bring_down(deployment: Deployment, supervisor: Supervisor, console: Console) -> None:
    mps = find_mps(deployment, os.environ)
    if supervisor.state() is DaemonState.ABSENT:
        if not _end_leftovers(deployment, console):
            console.print(f"nothing runs in {deployment.run_dir}")
    else:
        with console.status("letting running requests end"):
            _end_services(deployment, supervisor, mps, console)
        console.print("all services have ended")
    if mps is not None:
        stop_mps(deployment, mps, console)


def _end_services(deployment: Deployment, supervisor: Supervisor, mps: MpsControl | None, console: Console) -> None:
    """supervisord kills whoever does not end: clients of MPS are stopped before it is asked to end itself."""
    if mps is not None and supervisor.state() is DaemonState.RUNNING:
        stop_clients(deployment, supervisor, mps, console)
    supervisor.request_shutdown()
    supervisor.wait_ended(_end_timeout_s(deployment))


def _end_leftovers(deployment: Deployment, console: Console) -> bool:
    mps = find_mps(deployment, os.environ)
    before_kill = (lambda pid: end_client(mps, pid, console)) if mps else (lambda pid: None)
    processes = leftovers.find(deployment.run_dir)
    for process in processes:
        console.print(f"ending a service that lost its supervisor: {_title(process)}")
        leftovers.end(process, max(deployment.drain_timeouts_s.values()) + KILL_MARGIN_S, before_kill)
    return bool(processes)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return f"{process.name()} (pid {process.pid})"
    return f"pid {process.pid}"


def _wait(deployment: Deployment, supervisor: Supervisor, console: Console) -> None:
    with shown_on(console) as display:
        wait_until_serving(
            partial(look_with_replicas, deployment, supervisor),
            partial(last_words, deployment),
            display,
            clock=MonotonicClock(),
            sleep=time.sleep,
            timeout_s=READY_TIMEOUT_S,
        )


def _end_timeout_s(deployment: Deployment) -> float:
    replica_s = sum(drain_s + KILL_MARGIN_S for drain_s in deployment.drain_timeouts_s.values())
    return len(replica_dirs(deployment.run_dir)) * replica_s + KILL_MARGIN_S


def _stay(supervisor: Supervisor) -> None:
    while supervisor.state() is not DaemonState.ABSENT:
        time.sleep(POLL_S)
    raise NotReadyError("the deployment was ended from outside")


@contextlib.contextmanager
def _ended_on_exit(deployment: Deployment, supervisor: Supervisor, console: Console) -> Iterator[None]:
    """Ctrl-C and SIGTERM lead to the end of all services, which a second one does not hurry.

    A start that is refused leaves alone what ran before.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    is_ours = supervisor.state() is not DaemonState.RUNNING
    try:
        yield
    except KeyboardInterrupt:
        is_ours = True
        console.print()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if is_ours and supervisor.state() is not DaemonState.ABSENT:
            _bring_down(deployment, supervisor, console)


@contextlib.contextmanager
def _exclusive(run_dir: Path) -> Iterator[None]:
    """One `tandem up` at a time looks whether it runs and starts it."""
    try:
        descriptor = os.open(run_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError("run_dir", f"cannot write into {run_dir}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

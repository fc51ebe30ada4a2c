"""A deployment's MPS, on a machine with an NVIDIA GPU: the daemon, what its clients are started with, and their end.

The daemon is the deployment's own, in its run directory, unless the environment names another's pipe directory.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from tandem.cli.deployment import Deployment
from tandem.cli.programs import GATEWAY, parse_program
from tandem.cli.spares import worker_pids
from tandem.cli.supervision import KILL_MARGIN_S, Supervisor
from tandem.device.cuda.gpu import ENV_PERCENTAGE, GpuSearch, find_gpu
from tandem.device.cuda.mps import (
    CONTROL_PROGRAM,
    DEFAULT_LOG_DIRECTORY,
    ENV_LOG_DIRECTORY,
    ENV_PIPE_DIRECTORY,
    MpsControl,
    MpsDirectories,
)
from tandem.errors import DeviceError, DeviceFaultError, NotReadyError
from tandem.types import Phase

FOLDER = "mps"
WITH_MPS = frozenset({"auto", "mps-green", "mps-percentage"})  # partition backends
PATIENCE_S = KILL_MARGIN_S / 2  # beyond the drain, before a client is ended through the daemon


def find_mps(
    deployment: Deployment, environ: Mapping[str, str], search: Callable[[], GpuSearch] = find_gpu
) -> MpsControl | None:
    """The daemon that this deployment uses, whether it runs or not; None where there is no use for one."""
    wanted = any(deployment.partition_backends[service] in WITH_MPS for service in _clients(deployment))
    program = shutil.which(CONTROL_PROGRAM, path=environ.get("PATH"))
    if not wanted or program is None or not _has_gpu(search):
        return None
    return MpsControl(_directories(deployment, environ), environ, program)


def environments(deployment: Deployment, mps: MpsControl | None) -> dict[str, dict[str, str]]:
    """By service, what makes it a client. memd must not be one."""
    if mps is None:
        return {}
    return {service: _environment(deployment, service, mps) for service in _clients(deployment)}


def start_mps(mps: MpsControl, console: Console) -> None:
    """Starts the daemon unless it runs. That it does not start is told and no failure: the phases see it themselves."""
    if mps.is_running():
        return
    try:
        mps.start()
        console.print(f"MPS control daemon in {mps.directories.pipe}")
    except DeviceError as error:
        console.print(f"{error}; the phases will take turns")


def stop_mps(deployment: Deployment, mps: MpsControl, console: Console) -> None:
    """Ends the daemon if it is this deployment's own, and has no client any more."""
    if mps.directories != _own_directories(deployment) or not mps.is_running():
        return
    try:
        mps.stop()
    except DeviceError as error:
        console.print(str(error))


def stop_service(
    deployment: Deployment, supervisor: Supervisor, name: str, mps: MpsControl | None, console: Console
) -> None:
    """Returns when that program has ended. A client that is busy after its drain is ended through the daemon before a
    kill.

    NotReadyError when it outlives even that.
    """
    service = parse_program(name).service
    if mps is None or service not in set(Phase):
        supervisor.stop_service(name)
        return
    pid = supervisor.processes()[name].pid
    supervisor.request_stop(name)
    if not supervisor.has_ended(name, deployment.drain_timeouts_s[service] + PATIENCE_S):
        for client_pid in (pid, *worker_pids(pid)):
            end_client(mps, client_pid, console)
        if not supervisor.has_ended(name, KILL_MARGIN_S):
            raise NotReadyError(f"{name} does not end; see {deployment.run_dir}/logs/supervisord.log")


def stop_clients(deployment: Deployment, supervisor: Supervisor, mps: MpsControl, console: Console) -> None:
    """Those that run, each as `stop_service` does; before them the gateway, so that they finish what it accepted."""
    running = supervisor.processes()
    for service in (GATEWAY, *map(str, Phase)):
        for name in running:
            if parse_program(name).service == service:
                stop_service(deployment, supervisor, name, mps, console)


def end_client(mps: MpsControl, pid: int, console: Console) -> None:
    """Takes its work off the GPU, if it has any; a daemon that does not answer is told of."""
    try:
        if mps.end_client(pid):
            console.print(f"ended the work of pid {pid} on the GPU")
    except DeviceError as error:
        console.print(str(error))


def _has_gpu(search: Callable[[], GpuSearch]) -> bool:
    """Also when its MPS serves nobody now."""
    try:
        return search().gpu is not None
    except DeviceFaultError:
        return True


def _clients(deployment: Deployment) -> tuple[str, ...]:
    return tuple(service for service in deployment.services if service in set(Phase))


def _environment(deployment: Deployment, service: str, mps: MpsControl) -> dict[str, str]:
    environment = mps.directories.environment()
    if deployment.partition_backends[service] == "mps-percentage":
        environment[ENV_PERCENTAGE] = str(deployment.initial_split.percent(Phase(service)))
    return environment


def _directories(deployment: Deployment, environ: Mapping[str, str]) -> MpsDirectories:
    if ENV_PIPE_DIRECTORY not in environ:
        return _own_directories(deployment)
    log = environ.get(ENV_LOG_DIRECTORY, DEFAULT_LOG_DIRECTORY)
    return MpsDirectories(Path(environ[ENV_PIPE_DIRECTORY]), Path(log))


def _own_directories(deployment: Deployment) -> MpsDirectories:
    return MpsDirectories(deployment.run_dir / FOLDER, deployment.run_dir / "logs" / FOLDER)

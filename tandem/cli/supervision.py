"""The services under supervisord: its configuration, its daemon, and its XML-RPC over a unix socket.

supervisord restarts what dies, and the watchdog under it ends what hangs. supervisord rotates the logs and, when it
ends, stops the services by falling priority, each when the one before has drained: the gateway first, so that the
phases finish what was accepted, memd after them and last of all the keeper, which holds memd's segments whenever memd
is not there.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPException
from math import ceil
from pathlib import Path
from typing import Any
from xmlrpc.client import Error as XmlRpcError
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import Faults, SupervisorTransport

import tandem
from tandem.cli.deployment import Deployment
from tandem.cli.programs import CONF_NAME, GATEWAY, HELPERS, KEEPER, WATCHDOG, Program, parse_program
from tandem.cli.spares import STEWARD, needs_steward
from tandem.config.environment import SERVICE_ENVIRONMENT
from tandem.config.local_replicas import replica_dir
from tandem.config.settings import KEEPER_SOCKET
from tandem.device.cpu.confinement import confined, replica_cores
from tandem.device.cuda.mps import ENV_LOG_DIRECTORY, ENV_PIPE_DIRECTORY
from tandem.errors import ConfigError, NotReadyError

SOCKET_NAME = "supervisor.sock"
MPS_DIRECTORIES = (ENV_PIPE_DIRECTORY, ENV_LOG_DIRECTORY)
START_SECS = 5  # a service that dies sooner is restarted with growing delays, later ones at once
START_RETRIES = 1000
KILL_MARGIN_S = 10  # beyond the drain, before SIGKILL
NOT_STARTED_AGAIN = frozenset({"STOPPED", "FATAL"})  # states that supervisord leaves a process in
POLL_S = 0.1
BOOT_TIMEOUT_S = 15.0

_MAIN_SECTIONS = """\
[supervisord]
logfile = %(here)s/logs/supervisord.log
logfile_maxbytes = 5MB
logfile_backups = 2
pidfile = %(here)s/supervisord.pid
childlogdir = %(here)s/logs
identifier = tandem
umask = 077

[unix_http_server]
file = %(here)s/supervisor.sock
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""

_PROGRAM_SECTION = """
[program:{name}]
command = {command}
directory = %(here)s
environment = {environment}
priority = {priority}
autorestart = true
startsecs = {startsecs}
startretries = {startretries}
stopsignal = TERM
stopwaitsecs = {stopwaitsecs}
stopasgroup = {stop_as_group}
killasgroup = {kill_as_group}
redirect_stderr = true
stdout_logfile = %(here)s/logs/{name}.log
stdout_logfile_maxbytes = 20MB
stdout_logfile_backups = 3
"""


def render_conf(deployment: Deployment, environments: Mapping[str, Mapping[str, str]]) -> str:
    """supervisord.conf of the deployment, to lie in its run directory.

    `environments`: by service, what it has beside what every service has.
    """
    keepers = (_keeper(deployment, replica) for replica in range(deployment.num_replicas))
    programs = (_program(deployment, each, environments.get(each.service, {})) for each in deployment.programs)
    watchdog = _watchdog(deployment, environments) if deployment.gateway.hang_timeout_s else ""
    return "".join((_MAIN_SECTIONS, *keepers, *programs, watchdog))


def log_path(run_dir: Path, name: str) -> Path:
    """Where a program's log is."""
    return run_dir / "logs" / f"{name}.log"


def _program(deployment: Deployment, program: Program, environment: Mapping[str, str]) -> str:
    service = program.service
    has_steward = needs_steward(deployment, service)
    entry = [STEWARD, service] if has_steward else [f"services.{service}.main"]
    argv = [sys.executable, "-P", "-m", *entry, *deployment.flags(service, program.replica)]
    return _PROGRAM_SECTION.format(
        name=program.name,
        command=" ".join(_quoted(part) for part in confined(argv, _cores(deployment, program))),
        environment=",".join(_assigned(*each) for each in {**SERVICE_ENVIRONMENT, **environment}.items()),
        priority=100 * (len(deployment.services) - deployment.services.index(service)),
        startsecs=START_SECS,
        startretries=START_RETRIES,
        stopwaitsecs=ceil(deployment.drain_timeouts_s[service]) + KILL_MARGIN_S,
        stop_as_group=_flag(service == "memd"),  # its loader must not outlive it
        kill_as_group=_flag(service == "memd" or has_steward),  # nor a steward's workers; it stops them itself
    )


def _cores(deployment: Deployment, program: Program) -> tuple[int, ...]:
    if program.service == GATEWAY:
        return ()
    return replica_cores(program.replica, deployment.num_replicas, sorted(os.sched_getaffinity(0)))


def _keeper(deployment: Deployment, replica: int) -> str:
    """The first to start and the last to end: it has what memd left, as long as this deployment lives."""
    socket = replica_dir(deployment.run_dir, replica) / KEEPER_SOCKET
    keeper = ["--socket", str(socket), "--log-level", deployment.gateway.log_level]
    return _helper(Program(KEEPER, replica), ["services.memd.keeper", *keeper], SERVICE_ENVIRONMENT, priority=1)


def _watchdog(deployment: Deployment, environments: Mapping[str, Mapping[str, str]]) -> str:
    """The last to start and the first to end. It speaks to the MPS whose clients the phases are."""
    flags = deployment.flags("gateway")
    mps = {key: value for given in environments.values() for key, value in given.items() if key in MPS_DIRECTORIES}
    return _helper(Program(WATCHDOG), ["tandem.cli.watchdog", *flags], {**SERVICE_ENVIRONMENT, **mps}, priority=999)


def _helper(program: Program, module_and_flags: Sequence[str], environment: Mapping[str, str], *, priority: int) -> str:
    return _PROGRAM_SECTION.format(
        name=program.name,
        command=" ".join(_quoted(part) for part in (sys.executable, "-P", "-m", *module_and_flags)),
        environment=",".join(_assigned(*each) for each in environment.items()),
        priority=priority,
        startsecs=START_SECS,
        startretries=START_RETRIES,
        stopwaitsecs=KILL_MARGIN_S,
        stop_as_group=_flag(False),
        kill_as_group=_flag(False),
    )


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _assigned(key: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'{key}="{escaped}"'


def _quoted(part: str) -> str:
    """For supervisord's reader, which expands %, takes space and # or ; for a comment, and only then splits words."""
    if "\n" in part:
        raise ConfigError("model", f"a line break in {part!r}")
    quoted = shlex.quote(part).replace("%", "%%")
    return quoted.replace(" #", " ''#").replace(" ;", " '';")


@dataclass(frozen=True, slots=True)
class ProcessView:
    """A service's process as supervisord sees it. `service` is its program's name."""

    service: str
    state: str  # STARTING, RUNNING, BACKOFF, STOPPING, STOPPED, EXITED, FATAL, UNKNOWN
    pid: int  # 0 when there is none
    started_unix_s: int
    uptime_s: int


class DaemonState(StrEnum):
    """What supervisord is doing."""

    ABSENT = "absent"
    RUNNING = "running"
    ENDING = "ending"


class Supervisor:
    """The supervisord of one run directory, whether it runs or not."""

    def __init__(self, run_dir: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self._run_dir = run_dir
        self._sleep = sleep

    @property
    def conf_path(self) -> Path:
        """Its configuration, as last started."""
        return self._run_dir / CONF_NAME

    def is_started_with(self, conf: str) -> bool:
        """Whether that was its configuration; no, too, when the file has gone from under it."""
        try:
            return self.conf_path.read_text() == conf
        except FileNotFoundError:
            return False

    def state(self) -> DaemonState:
        """Whether it answers; a socket file left by a killed one does not."""
        try:
            self._call("getState")
        except _EndingError:
            return DaemonState.ENDING
        except NotReadyError:
            return DaemonState.ABSENT
        return DaemonState.RUNNING

    def start(self, conf: str) -> None:
        """Writes `conf` and starts supervisord as a daemon. NotReadyError, with what it said, when it does not.

        ConfigError when there is no room for `conf`.
        """
        self._write_conf(conf)
        result = subprocess.run(  # noqa: S603 - our own interpreter and file
            [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(self.conf_path)],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=self._run_dir,
            env=child_environment(os.environ),
        )  # fmt: skip
        if result.returncode != 0:
            raise NotReadyError(f"supervisord did not start: {result.stderr.strip() or result.stdout.strip()}")
        self._wait(lambda: self.state() is DaemonState.RUNNING, BOOT_TIMEOUT_S, "supervisord does not answer")

    def processes(self) -> dict[str, ProcessView]:
        """Every service's process, by its program's name; helpers are none. NotReadyError when nothing runs."""
        views = [_view(info) for info in self._call("getAllProcessInfo")]
        return {view.service: view for view in views if parse_program(view.service).service not in HELPERS}

    def stop_service(self, service: str) -> None:
        """SIGTERM, and SIGKILL after the drain's time; returns when it has ended."""
        with contextlib.suppress(_AlreadySoError):
            self._call("stopProcess", service, True)

    def request_stop(self, service: str) -> None:
        """SIGTERM, and SIGKILL after the drain's time; does not wait for either."""
        with contextlib.suppress(_AlreadySoError):
            self._call("stopProcess", service, False)

    def has_ended(self, service: str, timeout_s: float) -> bool:
        """Whether the service's process is gone, or goes within that time."""
        for _ in range(ceil(timeout_s / POLL_S)):
            if self.processes()[service].pid == 0:
                return True
            self._sleep(POLL_S)
        return False

    def start_service(self, service: str) -> None:
        """Starts a stopped service; does not wait for it."""
        with contextlib.suppress(_AlreadySoError):
            self._call("startProcess", service, False)

    def start_stopped(self) -> None:
        """Starts what was stopped and not started again, or given up; does not wait for it."""
        for process in self.processes().values():
            if process.state in NOT_STARTED_AGAIN:
                self.start_service(process.service)

    def request_shutdown(self) -> None:
        """Asks it to stop all services in order and then itself."""
        with contextlib.suppress(_EndingError):
            self._call("shutdown")

    def wait_ended(self, timeout_s: float) -> None:
        """Returns when it answers no more."""
        self._wait(lambda: self.state() is DaemonState.ABSENT, timeout_s, "supervisord has not ended")

    def _write_conf(self, conf: str) -> None:
        try:
            self.conf_path.touch(mode=0o600)
            self.conf_path.write_text(conf)
        except OSError as error:
            raise ConfigError("run_dir", f"cannot write {self.conf_path}: {error.strerror}") from error

    def _call(self, method: str, *arguments: object) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._run_dir / SOCKET_NAME}")
        try:
            proxy = ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)
        except Fault as error:
            raise _from_fault(error) from error
        except (OSError, HTTPException, XmlRpcError) as error:
            raise NotReadyError(f"nothing runs in {self._run_dir}; start it with: tandem up") from error
        finally:
            transport.close()

    def _wait(self, condition: Callable[[], bool], timeout_s: float, problem: str) -> None:
        for _ in range(ceil(timeout_s / POLL_S)):
            if condition():
                return
            self._sleep(POLL_S)
        raise NotReadyError(f"{problem} after {timeout_s:.0f} s; see {self._run_dir}/logs/supervisord.log")


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """For our own programs: they come from where this command comes from, installed or not."""
    root = str(Path(tandem.__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (root, environ.get("PYTHONPATH", "")) if part)
    return {**environ, "PYTHONPATH": path}


class _AlreadySoError(Exception):
    """The service is already in the state that was asked for."""


class _EndingError(NotReadyError):
    """supervisord is stopping the services and answers nothing else."""


def _from_fault(fault: Fault) -> Exception:
    if fault.faultCode == Faults.SHUTDOWN_STATE:
        return _EndingError("the deployment is ending")
    if fault.faultCode in (Faults.NOT_RUNNING, Faults.ALREADY_STARTED):
        return _AlreadySoError()
    return NotReadyError(f"supervisord: {fault.faultString}")


def _view(info: dict[str, Any]) -> ProcessView:
    running = info["pid"] != 0
    return ProcessView(
        service=info["name"],
        state=info["statename"],
        pid=info["pid"],
        started_unix_s=info["start"],
        uptime_s=info["now"] - info["start"] if running else 0,
    )

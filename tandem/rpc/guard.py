"""Looking at a service from outside, and ending one that hangs: for the watchdog and for containers' health checks."""

import os
import signal
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from tandem.device.cuda.mps import client_control
from tandem.errors import DeviceError
from tandem.rpc.health_probe import probe
from tandem.rpc.vigil import ProcessFacts, Sight

_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_SIGHTS = {"SERVING": Sight.SERVING, "UNAVAILABLE": Sight.ABSENT, "DEADLINE_EXCEEDED": Sight.SILENT}

_log = structlog.get_logger()


def listener_pid(path: Path) -> int | None:
    """The process that listens on a unix socket, as the kernel remembers it; None when nobody does, or none of ours."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probing:
        probing.settimeout(1.0)
        try:
            probing.connect(os.fspath(path))
        except OSError:
            return None
        raw = probing.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid: int = _PEER_CREDENTIALS.unpack(raw)[0]
    return pid or None  # 0: it is in another namespace of processes


def sight_of(path: Path, service_name: str, deadline_s: float) -> Sight:
    """One probe of its health over its unix socket."""
    return sight_of_status(probe(f"unix:{path}", service_name, deadline_s))


def sight_of_status(status: str) -> Sight:
    """What a probe's answer says."""
    return _SIGHTS.get(status, Sight.ANSWERING)


def facts_of_listener(path: Path, proc: Path = Path("/proc")) -> ProcessFacts | None:
    """None when nobody listens there, or its process is gone."""
    pid = listener_pid(path)
    if pid is None:
        return None
    try:
        status = (proc / str(pid) / "status").read_text()
    except OSError:
        return None
    return ProcessFacts(pid, _is_traced(status), _waited_s(proc / str(pid) / "schedstat"))


def end_hung(service: str, pid: int, silent_s: float, environ: Mapping[str, str]) -> None:
    """Ends the process; its supervisor starts another. Under MPS its work on the GPU first: peers would end with it."""
    _log.error("service.hung", hung=service, pid=pid, silent_s=round(silent_s, 1))
    mps = client_control(environ)
    if mps is not None:
        try:
            mps.end_client(pid)
        except DeviceError as error:
            _log.warning("mps.unreachable", message=str(error))
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _is_traced(status: str) -> bool:
    """Of /proc/PID/status."""
    return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in status.splitlines())


def _waited_s(path: Path) -> float:
    """The second number of /proc/PID/schedstat: nanoseconds on a run queue."""
    with suppress(OSError, IndexError, ValueError):
        return int(path.read_text().split()[1]) / 1e9
    return 0.0

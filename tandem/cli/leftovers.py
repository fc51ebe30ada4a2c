"""Services whose supervisord was killed: they live on, hold the sockets, and must end before new ones start."""

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import psutil

from tandem.config.settings import MODES, sockets_of

_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def listener_pid(path: Path) -> int | None:
    """The process that listens on a unix socket, as the kernel remembers it; None when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return None
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid: int = _PEER_CREDENTIALS.unpack(raw)[0]
    return pid


def find(run_dir: Path) -> list[psutil.Process]:
    """The services that listen in the run directory, in the order in which they should stop."""
    names = dict.fromkeys(name for services in MODES.values() for each in services for name in sockets_of(each))
    pids = dict.fromkeys(listener_pid(run_dir / f"{name}.sock") for name in names)
    return [psutil.Process(pid) for pid in pids if pid is not None and psutil.pid_exists(pid)]


def end(process: psutil.Process, timeout_s: float, before_kill: Callable[[int], None]) -> None:
    """SIGTERM, `timeout_s` to drain, then `before_kill` of its pid and SIGKILL; returns when it has ended."""
    try:
        process.terminate()
        process.wait(timeout_s)
    except psutil.TimeoutExpired:
        before_kill(process.pid)
        process.kill()
        process.wait(timeout_s)
    except psutil.NoSuchProcess:
        return

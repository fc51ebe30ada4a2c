"""Services whose supervisord was killed: they live on, hold the sockets, and must end before new ones start."""

from collections.abc import Callable
from pathlib import Path

import psutil

from tandem.cli.programs import replica_dirs
from tandem.config.settings import KEEPER_SOCKET, MODES, sockets_of
from tandem.rpc.guard import listener_pid


def find(run_dir: Path) -> list[psutil.Process]:
    """The services that listen in the run directory or a replica's, in the order in which they should stop; after memd
    its keeper.
    """
    names = dict.fromkeys(name for services in MODES.values() for each in services for name in sockets_of(each))
    sockets = [*(f"{name}.sock" for name in names), KEEPER_SOCKET]
    folders = replica_dirs(run_dir).values()
    pids = dict.fromkeys(listener_pid(folder / socket) for socket in sockets for folder in folders)
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

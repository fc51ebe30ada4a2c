"""Processes by which holders are known, as the kernel names them, and when they end."""

import asyncio
import os
import select
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

from tandem.kv.store import HolderProcess

_START_TIME = 19  # of the fields of /proc/PID/stat behind the command's name


def seen_process(pid: int, proc: Path = Path("/proc")) -> HolderProcess | None:
    """Of a pid that the kernel told this process; None when it is gone, or 0: in another namespace."""
    began_ticks = _began_ticks(pid, proc)
    return HolderProcess(pid, _namespace(proc), began_ticks) if began_ticks else None


class ProcessEnd:
    """Calls `ended`, on the running loop, once a process has ended."""

    def __init__(self, pidfd: int, ended: Callable[[], None]) -> None:
        """Owns `pidfd`."""
        self._pidfd: int | None = pidfd
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._on_ended)

    def forget(self) -> None:
        """It is not called any more."""
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _on_ended(self) -> None:
        self.forget()
        self._ended()


class Unwatched(Enum):
    """Why the end of a process is not waited for."""

    ENDED = auto()  # it has come
    UNSEEN = auto()  # nobody can tell from here


def watch_end(process: HolderProcess, ended: Callable[[], None]) -> ProcessEnd | Unwatched:
    """`ended` is called later, if at all."""
    if process.namespace != _namespace(Path("/proc")):
        return Unwatched.UNSEEN
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return Unwatched.ENDED
    except OSError:  # out of descriptors
        return Unwatched.UNSEEN
    if _began_ticks(process.pid, Path("/proc")) != process.began_ticks or _is_readable(pidfd):
        os.close(pidfd)
        return Unwatched.ENDED
    return ProcessEnd(pidfd, ended)


def _is_readable(pidfd: int) -> bool:
    """Whether every thread of the process has ended."""
    polling = select.poll()
    polling.register(pidfd, select.POLLIN)
    return bool(polling.poll(0))


def _began_ticks(pid: int, proc: Path) -> int:
    """Clock ticks from the machine's start to the process's; 0 when there is no such process."""
    with suppress(OSError, IndexError, ValueError):
        stat = (proc / str(pid) / "stat").read_text()
        return int(stat.rpartition(")")[2].split()[_START_TIME])
    return 0


def _namespace(proc: Path) -> int:
    """Of this process's pids: its number."""
    return (proc / "self" / "ns" / "pid").stat().st_ino

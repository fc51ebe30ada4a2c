"""How a service's process ends: soon, and with a word where it stands if it does not."""

import asyncio
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

import structlog

from tandem.telemetry.stacks import task_stacks, thread_stacks

_log = structlog.get_logger()


class EndWatch:
    """Logs where the process stands when it is still there `limit_s` after `begin`. Made on the running loop."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """It was told to end; a second time changes nothing."""
        if self._timer is None:
            self._timer = threading.Timer(self._limit_s, self._report)
            self._timer.daemon = True
            self._timer.start()

    def _report(self) -> None:
        """From a thread of its own, since the loop may be what stands still."""
        _log.warning("service.late", limit_s=self._limit_s, tasks=task_stacks(self._loop), threads=thread_stacks())


def end_process(status: int) -> NoReturn:
    """Ends this process at once; what it has logged is written.

    A service that has stopped has nothing left to do. The interpreter's own end would take torch, gRPC and their
    threads down one by one: up to a second while somebody waits for the restart, and any of them may not let go.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk, a closed stream
            stream.flush()
    os._exit(status)

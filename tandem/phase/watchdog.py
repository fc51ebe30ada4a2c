"""A step that stands still ends its process: another attaches to the same weights and KV, and the requests go on.

The step's thread leaves signs of life, at every layer where kernels run one by one; a thread of its own looks for them.
Time counts by looks, each for its interval at most: a machine that was asleep, or a process that was stopped, has not
stood still. Waiting for the other phase's turn is no work, and does not count.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from tandem.clock import Clock
from tandem.device.cuda.mps import client_control
from tandem.errors import DeviceError
from tandem.telemetry.stacks import thread_stacks

LOOKS_A_LIMIT = 60
LONGEST_LOOK_S = 1.0
GRACE_S = 5.0  # for a step whose work on the GPU was ended to fail by itself

_log = structlog.get_logger()


class Progress:
    """Written by the step's thread alone."""

    def __init__(self) -> None:
        self.num_signs = 0
        self.is_working = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step's work."""
        self.is_working = True
        try:
            yield
        finally:
            self.is_working = False
            self.num_signs += 1

    def signing(self, pause: Callable[[], None] | None) -> Callable[[], None]:
        """What a step calls between layers: a sign of life, and `pause`, which may wait for the other phase."""
        if pause is None:
            return self._sign

        def pausing() -> None:
            self.is_working = False
            pause()
            self.is_working = True
            self.num_signs += 1

        return pausing

    def _sign(self) -> None:
        self.num_signs += 1


@dataclass(slots=True)
class StillnessMeter:
    """For how long a step has shown no sign of life."""

    limit_s: float
    longest_look_s: float
    still_s: float = 0.0
    _looked_s: float | None = None
    _num_signs: int = 0

    def look(self, num_signs: int, is_working: bool, now_s: float) -> bool:
        """Whether that is too long."""
        since_s = 0.0 if self._looked_s is None else min(now_s - self._looked_s, self.longest_look_s)
        is_still = is_working and num_signs == self._num_signs
        self.still_s = self.still_s + since_s if is_still else 0.0
        self._looked_s, self._num_signs = now_s, num_signs
        return self.still_s >= self.limit_s


class Watchdog:
    """Looks at one process's steps from a thread of its own."""

    def __init__(self, progress: Progress, limit_s: float, clock: Clock, end: Callable[[], None]) -> None:
        """`end` is called once, on that thread."""
        self._progress = progress
        self._look_s = min(LONGEST_LOOK_S, limit_s / LOOKS_A_LIMIT)
        self._meter = StillnessMeter(limit_s, 2 * self._look_s)
        self._clock = clock
        self._end = end
        self._stopped = threading.Event()

    async def run(self) -> None:
        """Until cancelled."""
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._stopped.set()

    def _look(self) -> None:
        progress = self._progress
        while not self._stopped.wait(self._look_s):
            if self._meter.look(progress.num_signs, progress.is_working, self._clock.now()):
                self._end()
                return


def end_stuck_process(exit_status: int, environ: Mapping[str, str]) -> None:
    """Says where every thread stands and ends this process; under MPS its work on the GPU first."""
    _log.error("step.stuck", exit_status=exit_status, stacks=thread_stacks())
    mps = client_control(environ)
    if mps is not None:
        try:
            mps.end_client(os.getpid())
        except DeviceError as error:
            _log.warning("mps.unreachable", message=str(error))
        time.sleep(GRACE_S)
    os._exit(exit_status)

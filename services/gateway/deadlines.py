"""The clients' deadlines: what ends a request in time, and what need not be begun."""

import asyncio
from collections.abc import Callable

from services.gateway.ports import Timers
from services.gateway.requests import Request
from tandem.clock import Clock
from tandem.errors import DeadlineError


class Deadlines:
    """Of the requests that have one."""

    def __init__(self, clock: Clock, timers: Timers, expire: Callable[[Request, DeadlineError], object]) -> None:
        self._clock = clock
        self._timers = timers
        self._expire = expire
        self._running: dict[Request, asyncio.TimerHandle] = {}

    def set(self, request: Request, remaining_s: float | None) -> None:
        """`expire` hears when the time is over; None: it never is. DeadlineError when it is already."""
        if remaining_s is None:
            return
        if remaining_s <= 0:
            raise DeadlineError("the deadline passed before the request was taken on")
        request.deadline_s = self._clock.now() + remaining_s
        error = DeadlineError("the deadline passed before the answer was complete")
        self._running[request] = self._timers.call_later(remaining_s, self._expire, request, error)

    def cancel(self, request: Request) -> None:
        """It has ended; nothing happens when it has no deadline."""
        timer = self._running.pop(request, None)
        if timer is not None:
            timer.cancel()

    def is_hopeless(self, request: Request, least_prefill_s: Callable[[], float]) -> bool:
        """Whether there is no time left even for a first token."""
        if request.deadline_s is None or request.started:
            return False
        return self._clock.now() + least_prefill_s() > request.deadline_s

"""The bound on waiting for a first turn that holds whatever the order and the load."""

import asyncio
from collections.abc import Callable

from services.gateway.ports import Timers
from services.gateway.requests import Request
from tandem.clock import Clock

ROUNDING_S = 1e-6  # by which a timer may be early


class Patience:
    """Requests of which no phase has had anything, and who has waited too long.

    What counts is time in which turns were given: while a phase is away everybody waits for it.
    """

    def __init__(self, clock: Clock, timers: Timers, max_wait_s: float, overdue: Callable[[Request], object]) -> None:
        """`overdue` hears of each that has waited for `max_wait_s`, which then waits here no more."""
        self._clock = clock
        self._timers = timers
        self._max_wait_s = max_wait_s
        self._overdue = overdue
        self._due_s: dict[Request, float] = {}  # by `_turns_s`; soonest first
        self._past_s = 0.0  # with turns, before the present spell
        self._since_s: float | None = None  # the present spell's start; None: no turns are given
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, request: Request) -> None:
        """It waits from now on."""
        self._due_s[request] = self._turns_s() + self._max_wait_s
        self._arm()

    def leave(self, request: Request) -> None:
        """It waits no longer; nothing happens when it did not."""
        self._due_s.pop(request, None)
        if not self._due_s:
            self._disarm()

    def note_turns(self, are_given: bool) -> None:
        """Whether those that wait may have a turn from now on."""
        if are_given == (self._since_s is not None):
            return
        self._past_s, self._since_s = self._turns_s(), self._clock.now() if are_given else None
        if are_given:
            self._arm()
        else:
            self._disarm()

    def _turns_s(self) -> float:
        return self._past_s if self._since_s is None else self._past_s + self._clock.now() - self._since_s

    def _arm(self) -> None:
        if self._timer is None and self._since_s is not None and self._due_s:
            delay_s = next(iter(self._due_s.values())) - self._turns_s()
            self._timer = self._timers.call_later(max(0.0, delay_s), self._on_timer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        now_s = self._turns_s() + ROUNDING_S
        while self._due_s and next(iter(self._due_s.values())) <= now_s:
            request = next(iter(self._due_s))
            del self._due_s[request]
            self._overdue(request)
        self._arm()

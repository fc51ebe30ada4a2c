"""Time as a dependency: code that decides is handed a `Clock`, tests hand it a `ManualClock`."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds from an arbitrary start that never go back."""

    def now(self) -> float:
        """Seconds, monotonic."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()


class ManualClock:
    """A clock that stands until it is moved."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now(self) -> float:
        """Seconds, as last set."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Moves the clock on by `seconds` >= 0."""
        if seconds < 0:
            raise ValueError(f"a clock does not go back: {seconds}")
        self._now_s += seconds

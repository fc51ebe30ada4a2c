"""Seconds since a run began."""

from tandem.clock import Clock


class Stopwatch:
    """A `Clock` that starts at 0."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start_s = clock.now()

    def now(self) -> float:
        """Seconds, monotonic."""
        return self._clock.now() - self._start_s

"""`timeshare`: the whole device for one phase at a time. Needs nothing of the device but that its work can be ended."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tandem.clock import Clock
from tandem.device.partition import Applied, RestartRequired
from tandem.device.timeshare.seat import Seat
from tandem.types import Phase, Split

HALF_PERCENT = 50  # until a split is applied


class TimeshareBackend:
    """A share is a share of the time, in proportion to the peer's."""

    def __init__(self, seat: Seat, synchronise: Callable[[], None], clock: Clock) -> None:
        """`synchronise` returns when what the calling thread has put on the device has ended."""
        self._seat = seat
        self._synchronise = synchronise
        self._clock = clock
        self._percent = HALF_PERCENT

    @property
    def name(self) -> str:
        """As in configuration and logs."""
        return "timeshare"

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        """From the next turn on."""
        self._percent = split.percent(phase)
        return Applied(f"turns, prefill to decode as {split.prefill_percent} to {split.decode_percent}")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits while it is the peer's, if that is alive and busy; at its end the device is at rest."""
        self._seat.wait()
        started_s = self._clock.now()
        try:
            yield
            self._synchronise()
        finally:
            self._seat.leave(self._clock.now() - started_s, self._percent)

"""`timeshare`: the whole device for one phase at a time. Needs nothing of the device but that its work can be ended.

On a processor, whose work ends with the call, a long step lets the peer in between two layers, so that turns are short.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

from tandem.clock import Clock
from tandem.device.partition import Applied, PartitionBackend, RestartRequired
from tandem.device.timeshare.seat import Seat
from tandem.types import Phase, Split

HALF_PERCENT = 50  # until a split is applied
SHORTEST_TURN_S = 0.004  # before a pause means anything
WHOLE = Split(100, 100)
SPLITS = tuple(Split(percent, 100 - percent) for percent in (20, 35, 50, 65, 80))


class Pauses(Enum):
    """Where a step may let the peer in."""

    BETWEEN_STEPS = "between steps"  # the device's work goes on when a call has returned
    BETWEEN_LAYERS = "between layers"


class TimeshareBackend:
    """A share is a share of the time, in proportion to the peer's."""

    def __init__(
        self,
        seat: Seat,
        synchronise: Callable[[], None],
        clock: Clock,
        device: PartitionBackend,
        pauses: Pauses,
    ) -> None:
        """`synchronise` returns when what the calling thread has put on the device has ended.

        `device` gives the thread that computes all of the device, for its turns.
        """
        self._seat = seat
        self._synchronise = synchronise
        self._clock = clock
        self._device = device
        self._pauses = pauses
        self._percent = HALF_PERCENT
        self._turn_start_s = 0.0

    @property
    def name(self) -> str:
        """As in configuration and logs."""
        return "timeshare"

    @property
    def splits(self) -> tuple[Split, ...]:
        """Any ratio can be had; these are well apart."""
        return SPLITS

    @property
    def pause(self) -> Callable[[], None] | None:
        """See `PartitionBackend`."""
        return self._pause if self._pauses is Pauses.BETWEEN_LAYERS else None

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        """From the next turn on."""
        self._device.apply(phase, WHOLE)
        self._percent = split.percent(phase)
        return Applied(f"turns, prefill to decode as {split.prefill_percent} to {split.decode_percent}")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits while it is the peer's, if that is alive and busy; at its end the device is at rest."""
        self._begin()
        try:
            yield
            self._synchronise()
        finally:
            self._end()

    def _pause(self) -> None:
        if self._clock.now() - self._turn_start_s >= SHORTEST_TURN_S:
            self._end()
            self._begin()

    def _begin(self) -> None:
        self._seat.wait()
        self._turn_start_s = self._clock.now()

    def _end(self) -> None:
        self._seat.leave(self._clock.now() - self._turn_start_s, self._percent)

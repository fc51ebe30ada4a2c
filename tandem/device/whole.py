"""`whole-device`: of a process that serves both phases and shares the device with nobody."""

from contextlib import AbstractContextManager, nullcontext

from tandem.device.partition import Applied, RestartRequired
from tandem.types import Phase, Split


class WholeDeviceBackend:
    """Leaves everything as it is."""

    @property
    def name(self) -> str:
        """As in logs; nothing to configure."""
        return "whole-device"

    @property
    def splits(self) -> tuple[Split, ...]:
        """There is nothing to choose."""
        return ()

    @property
    def pause(self) -> None:
        """There is nobody to wait for."""

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        """Whatever the split."""
        return Applied("the whole device")

    def turn(self) -> AbstractContextManager[None]:
        """There is nobody to wait for."""
        return nullcontext()

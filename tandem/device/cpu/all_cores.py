"""`whole-device` on processors: of a process that serves both phases and shares the cores with nobody."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.device.cpu.cores import CoreShare
from tandem.device.cpu.team import PlaceTeam, use_share
from tandem.device.whole import WholeDeviceBackend


class AllCoresBackend(WholeDeviceBackend):
    """Each of the threads that compute has a core of its own, where they are as many as the cores."""

    def __init__(self, place: PlaceTeam) -> None:
        self._place = place
        self._is_placed = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A step, on the thread that computes; before its first one the threads are placed. DeviceError."""
        if not self._is_placed:
            self._place_team()
        yield

    def _place_team(self) -> None:
        import torch

        cores = tuple(sorted(os.sched_getaffinity(0)))
        use_share(CoreShare(cores, torch.get_num_threads()), self._place)
        self._is_placed = True

"""`cpu-cadence`: half of the cores for each phase, and at times all of them for the one with the larger share."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tandem.clock import Clock
from tandem.device.cpu.affinity import CpuAffinityBackend
from tandem.device.cpu.cadence import PERIOD_S, SPLITS, Room, slot
from tandem.device.cpu.cores import CoreShare
from tandem.device.cpu.presence import Presence
from tandem.device.cpu.team import PlaceTeam, leave_team, use_share
from tandem.device.partition import Applied, RestartRequired
from tandem.types import Phase, Split

EVEN = Split(50, 50)
LONGEST_SILENCE_S = 0.25  # of a phase at work: a step of few rows, or a layer of many
RETURN_S = 0.005  # a phase between two steps is at work


@dataclass(frozen=True, slots=True)
class CadenceClock:
    """The machine's monotonic clock, and how to let it go on."""

    clock: Clock
    sleep: Callable[[float], None] = time.sleep


class CpuCadenceBackend:
    """Waits in steps, and between the layers of long ones, never longer than a part of a period."""

    def __init__(
        self,
        phase: Phase,
        presence: Presence,
        time: CadenceClock,
        halves: CpuAffinityBackend,
        place: PlaceTeam = leave_team,
    ) -> None:
        """`halves` binds this process's threads to its half of the cores; the one that computes may leave it."""
        self._phase = phase
        self._presence = presence
        self._time = time
        self._halves = halves
        self._place = place
        self._split = EVEN
        self._shares: dict[Room, CoreShare] = {}
        self._room = Room.NONE

    @property
    def name(self) -> str:
        """As in configuration and logs."""
        return "cpu-cadence"

    @property
    def splits(self) -> tuple[Split, ...]:
        """Any ratio can be had; these are well apart."""
        return SPLITS

    @property
    def pause(self) -> Callable[[], None]:
        """Between the layers of a long step."""
        return self._go_on

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        """Called on the thread that computes. DeviceError when the cores are not to be had."""
        self._halves.apply(phase, EVEN)
        half, everything = self._halves.share(phase, EVEN), self._halves.share(phase, Split(100, 100))
        others = tuple(core for core in everything.cores if core not in half.cores)
        self._shares = {Room.HALF: half, Room.ALL: replace(everything, cores=half.cores + others)}
        self._split, self._room = split, Room.HALF
        cores = ",".join(map(str, self._shares[Room.HALF].cores))
        return Applied(f"cores {cores}; with the others, as {split.prefill_percent} to {split.decode_percent}")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A step; at its end the peer is told, soon enough, that there may be no other."""
        self._go_on()
        try:
            yield
        finally:
            self._presence.busy_until(self._time.clock.now() + RETURN_S)

    def _go_on(self) -> None:
        while (room := self._current_room()) is Room.NONE:
            pass
        if room is not self._room and self._shares:
            use_share(self._shares[room], self._place)
            self._room = room

    def _current_room(self) -> Room:
        """Rests when there is none."""
        now_s = self._time.clock.now()
        self._presence.busy_until(now_s + LONGEST_SILENCE_S)
        current = slot(self._phase, self._split, self._presence.peer_is_busy(now_s), now_s)
        if current.room is Room.NONE:
            self._time.sleep(min(current.end_s - now_s, PERIOD_S))
        return current.room

"""Looks at the system's processes once a second: what they have, and who has died without being killed."""

import asyncio
from dataclasses import dataclass

from tandem.clock import Clock
from tests.chaos.growth import Sample
from tests.chaos.system import System

EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Death:
    """A process that was there at the look before."""

    at_s: float
    role: str
    pid: int


class Vitals:
    """Of one system. `deaths` has all of them, the faults' victims too."""

    def __init__(self, system: System, clock: Clock) -> None:
        self.samples: list[Sample] = []
        self.deaths: list[Death] = []
        self._system = system
        self._clock = clock
        self._alive: dict[int, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._take(await asyncio.to_thread(self._system.samples, self._clock.now()))
            await asyncio.sleep(EVERY_S)

    def _take(self, samples: list[Sample]) -> None:
        self.samples += samples
        alive = {sample.pid: sample.role for sample in samples}
        self.deaths += (Death(self._clock.now(), role, pid) for pid, role in self._alive.items() if pid not in alive)
        self._alive = alive

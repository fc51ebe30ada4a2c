"""Carries faults out."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tandem.clock import Clock
from tests.chaos.links import Flow, Link
from tests.chaos.oracle import Violation
from tests.chaos.schedule import Fault, FaultKind
from tests.chaos.system import Life, System

POLL_S = 0.05
PROCESS_WITHIN_S = 120.0  # of a service that was killed, its next process
SETTLE_S = 2.0  # the watchdog ends only what it has seen serving
HUNG_WITHIN_S = 60.0  # far beyond the hang time-out: processors may be short
_FLOWS = {
    FaultKind.CUT: Flow.CUT,
    FaultKind.STALL: Flow.STALLED,
    FaultKind.THROTTLE: Flow.SLOW,
    FaultKind.DELAY: Flow.LATE,
}


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault as it came to be. `pid`: of the service's process, 0 for faults of other things."""

    fault: Fault
    at_s: float
    pid: int


class Injector:
    """Of one system. `ended`: processes that it has killed, or caused to be."""

    def __init__(self, system: System, links: Mapping[str, Link], clock: Clock) -> None:
        self.injections: list[Injection] = []
        self.violations: list[Violation] = []
        self.ended: set[Life] = set()
        self._system = system
        self._links = links
        self._clock = clock

    async def run(self, schedule: Sequence[Fault]) -> None:
        """Each at its time; returns when the last is over."""
        start_s = self._clock.now()
        async with asyncio.TaskGroup() as group:
            for fault in schedule:
                await asyncio.sleep(max(0.0, start_s + fault.at_s - self._clock.now()))
                group.create_task(self.inject(fault))

    async def inject(self, fault: Fault) -> None:
        """Returns when it is over."""
        match fault.kind:
            case FaultKind.KILL:
                await self.kill(fault)
            case FaultKind.STOP:
                await self._stop(fault)
            case FaultKind.HANG:
                await self._hang(fault)
            case FaultKind.FULL_LOGS:
                await self._fill_logs(fault)
            case FaultKind.FREEZE:
                self._note(fault, 0)
                self._links[fault.target].freeze()
            case _:
                self._note(fault, 0)
                link = self._links[fault.target]
                link.set(_FLOWS[fault.kind])
                await asyncio.sleep(fault.duration_s)
                link.set(Flow.OPEN)

    async def kill(self, *faults: Fault) -> None:
        """All at once, as far as one can."""
        lives = [await self._life(fault.target) for fault in faults]
        for fault, life in zip(faults, lives, strict=True):
            self.ended.add(life)
            self._note(fault, life.pid)
            _signal(life.pid, signal.SIGKILL)

    async def _stop(self, fault: Fault) -> None:
        pid = (await self._life(fault.target)).pid
        self._note(fault, pid)
        _signal(pid, signal.SIGSTOP)
        await asyncio.sleep(fault.duration_s)
        _signal(pid, signal.SIGCONT)

    async def _hang(self, fault: Fault) -> None:
        life = await self._settled_life(fault.target)
        self.ended.add(life)
        self._note(fault, life.pid)
        _signal(life.pid, signal.SIGSTOP)
        if not await self._is_gone(life, fault.target):
            _signal(life.pid, signal.SIGCONT)
            self.violations.append(Violation("a hang is ended", f"{fault.target} ({life.pid}) was left stopped"))

    async def _fill_logs(self, fault: Fault) -> None:
        disk = self._system.disk
        if disk is not None:
            self._note(fault, 0)
            await asyncio.to_thread(disk.fill)
            await asyncio.sleep(fault.duration_s)
            disk.free()

    async def _life(self, service: str) -> Life:
        """Of its process, or the next one. RuntimeError: there is none."""
        for _ in range(int(PROCESS_WITHIN_S / POLL_S)):
            life = (await asyncio.to_thread(self._system.lives)).get(service)
            if life is not None and life not in self.ended:
                return life
            await asyncio.sleep(POLL_S)
        raise RuntimeError(f"{service} has no process, {PROCESS_WITHIN_S} s after it was ended")

    async def _settled_life(self, service: str) -> Life:
        """Of a process that has served for a while."""
        while True:
            life = await self._life(service)
            if await asyncio.to_thread(self._system.is_serving, service):
                await asyncio.sleep(SETTLE_S)
                if life == await self._life(service):
                    return life
            await asyncio.sleep(POLL_S)

    async def _is_gone(self, life: Life, service: str) -> bool:
        for _ in range(int(HUNG_WITHIN_S / POLL_S)):
            if (await asyncio.to_thread(self._system.lives)).get(service) != life:
                return True
            await asyncio.sleep(POLL_S)
        return False

    def _note(self, fault: Fault, pid: int) -> None:
        self.injections.append(Injection(fault, self._clock.now(), pid))


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)

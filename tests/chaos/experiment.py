"""One run: what is right without faults, what single faults cost, a storm of faults, and what is left afterwards."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field

from tandem.client import AsyncClient
from tandem.clock import Clock
from tandem.errors import TandemError
from tandem.kv.store import StorageStatistics
from tandem.rpc.memd_client import MemdClient
from tests.chaos.cases import Case
from tests.chaos.growth import Growth, Verdict, growth_of
from tests.chaos.injector import Injection, Injector
from tests.chaos.links import Link
from tests.chaos.load import PATIENT, Load, undisturbed
from tests.chaos.oracle import RestingSystem, Violation, judge, leftovers
from tests.chaos.pauses import Window, pauses
from tests.chaos.records import Answers, Record
from tests.chaos.schedule import Fault, FaultKind
from tests.chaos.system import KEEPER, SERVICES, System
from tests.chaos.vitals import Vitals

NOTHING = "nothing"  # a fault that is none: what streams wait for in any case
COLD_VICTIMS: Mapping[str, tuple[str, ...]] = {
    "prefill": ("prefill", "memd", KEEPER),
    "decode": ("decode", "memd", KEEPER),
    "memd": ("memd", KEEPER),
    "everything": (*SERVICES, KEEPER),
}
BACK_WITHIN_S = 120.0
SETTLE_S = 2.0  # from the return of all services to the end of a fault's window
STORM_WINDOW_S = 5.0
WARM_UP_S = 3.0
REST_WITHIN_S = 60.0
REST_POLL_S = 0.5
SAY_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class FaultCost:
    """Of one fault that was waited for. `back_s`: until all services served again."""

    label: str
    at_s: float
    back_s: float
    waits_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is done to a system. `num_alone` single kills of each service, and `num_cold` restarts of each kind in which
    the weights are loaded again, each waited for; `storm` between them."""

    seed: int
    num_streams: int
    num_alone: int
    num_cold: int
    storm: tuple[Fault, ...]


@dataclass(slots=True)
class Findings:
    """What came of a run."""

    records: list[Record] = field(default_factory=list)
    injections: list[Injection] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    alone: list[FaultCost] = field(default_factory=list)
    cold: list[FaultCost] = field(default_factory=list)
    storm_waits_s: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)  # by service killed
    growth: tuple[Growth, ...] = ()
    storm_s: float = 0.0
    num_evictions: int = 0  # of the last memd
    requeues: dict[str, int] = field(default_factory=dict)  # of sequences, by reason, as the gateways logged them


class Run:
    """Of a plan, over a system that serves."""

    def __init__(
        self, plan: RunPlan, system: System, cases: Sequence[Case], *, clock: Clock, say: Callable[[str], None]
    ) -> None:
        """`say` is told, a line at a time, how it goes."""
        self.findings = Findings()
        self._plan = plan
        self._system = system
        self._cases = cases
        self._clock = clock
        self._say = say

    async def run(self, links: Mapping[str, Link]) -> Findings:
        """Starts the system, with its clients behind `links`. RuntimeError: it does not do its work without faults."""
        async with _opened(links) as doors, _opened(self._system.between):
            await asyncio.to_thread(self._system.up)
            await self._run(doors, Injector(self._system, {**links, **self._system.between}, self._clock))
        return self.findings

    async def _run(self, doors: Sequence[str], injector: Injector) -> None:
        vitals = Vitals(self._system, self._clock)
        async with _background(vitals.run()), self._clients(doors) as clients:
            calm = await undisturbed(clients[0], self._cases, self._clock)
            expected = calm.answers
            reseeded = f"; {calm.num_reseeded} got other seeds, for they were near ties" if calm.num_reseeded else ""
            self._say(f"{len(calm.cases)} requests answered without faults, alone and all at once{reseeded}")
            load = Load(clients, calm.cases, self._plan.seed, self._clock)
            self.findings.records, self.findings.injections = load.records, injector.injections
            async with _background(self._tell(load, injector, expected)):
                try:
                    await self._do_all(clients[0], load, injector, vitals)
                except* (TandemError, RuntimeError, OSError) as errors:
                    load.cancel()
                    self._violated("the run comes to its end", "; ".join(map(repr, errors.exceptions)))
        self.findings.requeues = self._system.requeues()
        self._conclude(expected, injector)

    async def _do_all(self, client: AsyncClient, load: Load, injector: Injector, vitals: Vitals) -> None:
        await _warm_up(load)
        await self._single_faults(load, injector)
        await self._storm(load, injector, vitals)
        await self._rest(client, load)
        self._check_deaths(injector, vitals)
        if self._plan.num_cold:
            await _warm_up(load)
            await self._cold_restarts(load, injector)
            await self._rest(client, load)

    async def _single_faults(self, load: Load, injector: Injector) -> None:
        for _ in range(self._plan.num_alone):
            for label in (NOTHING, *SERVICES):
                victims = () if label == NOTHING else (label,)
                self.findings.alone.append(await self._cost(label, victims, load, injector))

    async def _storm(self, load: Load, injector: Injector, vitals: Vitals) -> None:
        epoch = (await self._statistics()).epoch
        start_s = self._clock.now()
        await injector.run(self._plan.storm)
        end_s = self._clock.now()
        await self._back()
        self.findings.storm_s = end_s - start_s
        await asyncio.sleep(SETTLE_S)
        for injection in injector.injections:
            if injection.fault.kind is FaultKind.KILL and injection.at_s >= start_s:
                window = Window(injection.at_s, injection.at_s + STORM_WINDOW_S)
                waits = self.findings.storm_waits_s.setdefault(injection.fault.target, [])
                waits.append(pauses(load.records, window))
        storm_samples = [sample for sample in vitals.samples if start_s <= sample.at_s <= end_s]
        self.findings.growth = growth_of(storm_samples) if storm_samples else ()
        if (await self._statistics()).epoch != epoch:
            self._violated("memd's storage outlives it", "it began anew during the storm")

    async def _cold_restarts(self, load: Load, injector: Injector) -> None:
        for _ in range(self._plan.num_cold):
            for label, victims in COLD_VICTIMS.items():
                self.findings.cold.append(await self._cost(label, victims, load, injector))

    async def _cost(self, label: str, victims: Sequence[str], load: Load, injector: Injector) -> FaultCost:
        start_s = self._clock.now()
        await injector.kill(*(Fault(0.0, FaultKind.KILL, victim) for victim in victims))
        await self._back()
        back_s = self._clock.now() - start_s
        await asyncio.sleep(SETTLE_S)
        return FaultCost(label, start_s, back_s, pauses(load.records, Window(start_s, self._clock.now())))

    async def _back(self) -> None:
        if not await asyncio.to_thread(self._system.wait_serving, BACK_WITHIN_S):
            self._violated("every service comes back", f"not all serve after {BACK_WITHIN_S} s")

    async def _rest(self, client: AsyncClient, load: Load) -> None:
        """No request is left, and nothing that belonged to one."""
        await load.stop()
        start_s = self._clock.now()
        found = await self._left(client)
        last = found
        while found and self._clock.now() < start_s + REST_WITHIN_S:
            last = found
            await _nudge(client, self._cases[0])
            await asyncio.sleep(REST_POLL_S)
            found = await self._left(client)
        self.findings.violations += found
        waited_for = f", waited for: {last[0].rule} ({last[0].what})" if last else ""
        self._say(f"at rest {self._clock.now() - start_s:.1f} s after the last request{waited_for}")

    async def _left(self, client: AsyncClient) -> list[Violation]:
        try:
            return list(leftovers(await self._resting(client)))
        except (TandemError, OSError) as error:
            return [Violation("every service answers", f"{type(error).__name__}: {error}")]

    async def _resting(self, client: AsyncClient) -> RestingSystem:
        storage = await self._statistics()
        self.findings.num_evictions = storage.num_evictions
        spare = await asyncio.to_thread(self._system.spare_blocks)
        return RestingSystem(storage, await client.status(), await asyncio.to_thread(self._system.pids), spare)

    async def _statistics(self) -> StorageStatistics:
        client = MemdClient(self._system.address("memd"))
        try:
            return await client.statistics()
        finally:
            await client.close()

    def _check_deaths(self, injector: Injector, vitals: Vitals) -> None:
        """So far. Where memd's storage has gone the phases end by themselves, as they should."""
        ended_pids = {life.pid for life in injector.ended}
        for death in vitals.deaths:
            if death.pid not in ended_pids:
                what = f"{death.role} ({death.pid}) at {death.at_s:.1f} s"
                violation = Violation("nobody dies but by a fault", what, death.at_s, death.at_s)
                self.findings.violations.append(violation)

    def _conclude(self, expected: Mapping[int, Answers], injector: Injector) -> None:
        judged = (judge(record, expected[record.case.number]) for record in self.findings.records)
        self.findings.violations += [violation for violation in judged if violation is not None]
        self.findings.violations += injector.violations
        self.findings.violations += [
            Violation("nothing grows", f"{each.role}: {each.quantity} rises by {each.rise:.0f}, bound {each.bound:.0f}")
            for each in self.findings.growth
            if each.verdict is Verdict.GROWS
        ]

    def _violated(self, rule: str, what: str) -> None:
        self.findings.violations.append(Violation(rule, what))

    async def _tell(self, load: Load, injector: Injector, expected: Mapping[int, Answers]) -> None:
        start_s = self._clock.now()
        while True:
            await asyncio.sleep(SAY_EVERY_S)
            ends = Counter(str(record.end) for record in load.records)
            wrong = sum(
                record.end != "open" and judge(record, expected[record.case.number]) is not None
                for record in load.records
            )
            kills = sum(injection.fault.kind is FaultKind.KILL for injection in injector.injections)
            self._say(f"{self._clock.now() - start_s:.0f} s: {kills} kills; requests {dict(ends)}; {wrong} violations")

    @contextlib.asynccontextmanager
    async def _clients(self, doors: Sequence[str]) -> AsyncIterator[list[AsyncClient]]:
        """Every other stream goes straight, the others through the doors in turn."""
        direct = self._system.address("gateway")
        addresses = [
            doors[number // 2 % len(doors)] if number % 2 and doors else direct
            for number in range(self._plan.num_streams)
        ]
        clients = [AsyncClient(address, PATIENT) for address in addresses]
        try:
            for client in clients:
                await client.status()  # who has never been answered takes nothing up again
            yield clients
        finally:
            await asyncio.gather(*(client.close() for client in clients))


async def _warm_up(load: Load) -> None:
    load.start()
    await asyncio.sleep(WARM_UP_S)


async def _nudge(client: AsyncClient, case: Case) -> None:
    """A phase says how many spare blocks it has when it does something."""
    with contextlib.suppress(TandemError):
        await client.generate_once(case.prompt, max_tokens=2)


@contextlib.asynccontextmanager
async def _opened(links: Mapping[str, Link]) -> AsyncIterator[list[str]]:
    """The links' addresses for clients."""
    try:
        yield [await link.open() for link in links.values()]
    finally:
        await asyncio.gather(*(link.close() for link in links.values()))


@contextlib.asynccontextmanager
async def _background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

"""A phase's life: wait for memd, serve, drain; the same for prefill and decode.

While memd is away the phase serves on. When its storage is gone the process ends with a status that asks the supervisor
for a new one: nothing of what this one has mapped or leased may be trusted any more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

import structlog

from tandem.errors import DeviceFaultError, LeaseError, StorageLostError
from tandem.kv.store import Holding
from tandem.phase.crew import Crew
from tandem.phase.door import Door
from tandem.phase.engine import StreamEnd
from tandem.phase.hold import Hold
from tandem.phase.retirement import Retirement
from tandem.phase.session import ResultT

_Started = TypeVar("_Started")

_log = structlog.get_logger()

EXIT_OK = 0
EXIT_START_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the storage is gone, or the device cannot be used any more
HAND_BACK_S = 5.0  # beyond the time to drain: what memd must be told is told within it, or not at all


class PhaseState(Enum):
    """Health is SERVING in exactly one of them."""

    WAITING = "waiting"  # for memd
    SERVING = "serving"
    DRAINING = "draining"
    ENDED = "ended"


_TRANSITIONS: Mapping[PhaseState, frozenset[PhaseState]] = {
    PhaseState.WAITING: frozenset({PhaseState.SERVING, PhaseState.ENDED}),
    PhaseState.SERVING: frozenset({PhaseState.DRAINING, PhaseState.ENDED}),
    PhaseState.DRAINING: frozenset({PhaseState.ENDED}),
    PhaseState.ENDED: frozenset(),
}


class Engine(StreamEnd[ResultT], Protocol[ResultT]):
    """What the lifecycle needs of an engine."""

    def start(self) -> None:
        """Spawns its work into the crew it was built with."""
        ...

    async def drain(self, timeout_s: float) -> None:
        """Finishes or hands back what it has, then ends every stream."""
        ...

    async def reclaim(self, num_blocks: int) -> None:
        """memd asks for spare blocks."""
        ...

    def resume(self, holding: Holding) -> None:
        """memd was away and is back, and says what this phase has."""
        ...


class PhaseLife(Generic[ResultT]):
    """Runs once."""

    def __init__(
        self,
        door: Door[ResultT],
        *,
        attach: Callable[[], Coroutine[object, object, Hold]],
        build: Callable[[Hold, Crew], Coroutine[object, object, Engine[ResultT]]],
        take_place: Callable[[], Awaitable[None]],
        set_serving: Callable[[bool], None],
        drain_timeout_s: float,
        retirement: Retirement,
    ) -> None:
        """`attach` tries until memd answers; `build` makes the engine over what was attached.

        `take_place` comes between the two and serving. Who retires waits for no sequence to finish.
        """
        self._door = door
        self._attach = attach
        self._build = build
        self._take_place = take_place
        self._set_serving = set_serving
        self._drain_timeout_s = drain_timeout_s
        self._retirement = retirement
        self._state = PhaseState.WAITING

    async def run(self, stop: asyncio.Event) -> int:
        """The process's exit status. Raises what ended the phase otherwise, FingerprintMismatchError first of all."""
        hold, crew = await self._unless_ended(self._attach(), stop), Crew()
        if hold is None:
            self._enter(PhaseState.ENDED)
            return self._retirement.exit_status
        try:
            return await self._serve(hold, crew, stop)
        except StorageLostError as error:
            _log.error("memd.lost", reason=str(error), exit_status=EXIT_START_AGAIN)
            return EXIT_OK if stop.is_set() else EXIT_START_AGAIN
        finally:
            self._enter(PhaseState.ENDED)
            await crew.cancel()
            await hold.detach()

    async def _serve(self, hold: Hold, crew: Crew, stop: asyncio.Event) -> int:
        engine = await self._unless_ended(self._build(hold, crew), stop)  # which may wait for memd
        if engine is None:
            return self._retirement.exit_status
        engine.start()
        crew.spawn(hold.run(engine.resume))
        crew.spawn(_pass_on_reclaims(hold, engine))
        await self._take_place()
        self._door.open(engine)
        self._enter(PhaseState.SERVING)
        await _first_of(crew.failure(), stop.wait(), self._retirement.due())
        self._enter(PhaseState.DRAINING)
        patience_s = 0.0 if self._retirement.is_due else self._drain_timeout_s
        await _first_of(crew.failure(), _drain(engine, patience_s))
        return self._retirement.exit_status

    async def _unless_ended(self, start: Coroutine[object, object, _Started], stop: asyncio.Event) -> _Started | None:
        """What `start` answers; None when the phase is to end before, and it is cancelled."""
        starting = asyncio.get_running_loop().create_task(start)
        await _first_of(starting, stop.wait(), self._retirement.due())
        if starting.done():
            return starting.result()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return None

    def _enter(self, state: PhaseState) -> None:
        if state not in _TRANSITIONS[self._state]:
            raise LeaseError(f"a {self._state.value} phase does not become {state.value}")
        self._state = state
        if state is not PhaseState.SERVING:
            self._door.shut()
        self._set_serving(state is PhaseState.SERVING)
        _log.info("phase.state", state=state.value)


class JointHealth:
    """One answer for all the lives of a process: it serves when each of them does."""

    def __init__(self, num_lives: int, set_serving: Callable[[bool], None]) -> None:
        self._num_lives = num_lives
        self._set_serving = set_serving
        self._serving: set[str] = set()

    def set(self, name: str, serving: bool) -> None:
        """What one of them says."""
        if serving:
            self._serving.add(name)
        else:
            self._serving.discard(name)
        self._set_serving(len(self._serving) == self._num_lives)


async def run_lives(lives: Sequence[PhaseLife[Any]], crew: Crew, stop: asyncio.Event) -> int:
    """All of them, and with them a process: the first to end but by `stop` ends it. Raises what ended it otherwise.

    After a fault of the device the status asks for a new process, which attaches to the same weights and KV.
    """
    tasks = [asyncio.get_running_loop().create_task(life.run(stop)) for life in lives]
    failure = asyncio.ensure_future(crew.failure())
    try:
        waiting: set[asyncio.Future[Any]] = {*tasks}
        while waiting:
            done, _ = await asyncio.wait({*waiting, failure}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                status = task.result()
                if status != EXIT_OK:
                    return int(status)
            waiting -= done
        return EXIT_OK
    except DeviceFaultError as error:
        _log.error("device.lost", message=str(error), exit_status=EXIT_START_AGAIN)
        return EXIT_START_AGAIN
    finally:
        for task in (*tasks, failure):
            task.cancel()
        await asyncio.gather(*tasks, failure, return_exceptions=True)


async def _first_of(*works: Awaitable[object]) -> None:
    """Returns when one is done, raising what it raised; awaitables that were not tasks before are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task, work in zip(tasks, works, strict=True):
            if task is not work:
                task.cancel()


async def _drain(engine: Engine[ResultT], patience_s: float) -> None:
    """While memd is away, what needs it would wait for it."""
    try:
        async with asyncio.timeout(patience_s + HAND_BACK_S):
            await engine.drain(patience_s)
    except TimeoutError:
        _log.warning("drain.cut_short", patience_s=patience_s + HAND_BACK_S)


async def _pass_on_reclaims(hold: Hold, engine: Engine[ResultT]) -> None:
    while True:
        await engine.reclaim(await hold.next_reclaim())

"""A phase's life: wait for memd, serve, drain; the same for prefill and decode.

When memd is gone the process ends with a status that asks the supervisor for a new one: nothing of what this one has
mapped or leased may be trusted any more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from enum import Enum
from typing import Any, Generic, Protocol

import structlog

from tandem.errors import DeviceFaultError, LeaseError, NotReadyError
from tandem.phase.crew import Crew
from tandem.phase.door import Door
from tandem.phase.engine import StreamEnd
from tandem.phase.session import ResultT
from tandem.phase.storage import AttachmentLike

_log = structlog.get_logger()

EXIT_OK = 0
EXIT_START_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: memd is gone, or the device cannot be used any more


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


class PhaseLife(Generic[ResultT]):
    """Runs once."""

    def __init__(
        self,
        door: Door[ResultT],
        *,
        attach: Callable[[], Coroutine[object, object, AttachmentLike]],
        build: Callable[[AttachmentLike, Crew], Awaitable[Engine[ResultT]]],
        set_serving: Callable[[bool], None],
        drain_timeout_s: float,
    ) -> None:
        """`attach` tries until memd answers; `build` makes the engine over what was attached."""
        self._door = door
        self._attach = attach
        self._build = build
        self._set_serving = set_serving
        self._drain_timeout_s = drain_timeout_s
        self._state = PhaseState.WAITING

    async def run(self, stop: asyncio.Event) -> int:
        """The process's exit status. Raises what ended the phase otherwise, FingerprintMismatchError first of all."""
        attaching = asyncio.get_running_loop().create_task(self._attach())
        await _first_of(attaching, stop.wait())
        if not attaching.done():
            attaching.cancel()
            await asyncio.gather(attaching, return_exceptions=True)
            self._enter(PhaseState.ENDED)
            return EXIT_OK
        attachment = attaching.result()
        crew = Crew()
        try:
            return await self._serve(attachment, crew, stop)
        finally:
            self._enter(PhaseState.ENDED)
            await crew.cancel()
            await attachment.detach()

    async def _serve(self, attachment: AttachmentLike, crew: Crew, stop: asyncio.Event) -> int:
        engine = await self._build(attachment, crew)
        engine.start()
        crew.spawn(_pass_on_reclaims(attachment, engine))
        self._door.open(engine)
        self._enter(PhaseState.SERVING)
        await _first_of(crew.failure(), attachment.ended.wait(), stop.wait())
        if attachment.ended.is_set() and not stop.is_set():
            _log.error("memd.lost", exit_status=EXIT_START_AGAIN)
            return EXIT_START_AGAIN
        self._enter(PhaseState.DRAINING)
        await _first_of(crew.failure(), attachment.ended.wait(), engine.drain(self._drain_timeout_s))
        return EXIT_OK

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


async def _pass_on_reclaims(attachment: AttachmentLike, engine: Engine[ResultT]) -> None:
    while True:
        try:
            num_blocks = await attachment.next_reclaim()
        except NotReadyError:
            return  # the attachment has ended, which the lifecycle sees itself
        await engine.reclaim(num_blocks)

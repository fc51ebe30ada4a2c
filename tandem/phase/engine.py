"""What a phase's servicer and its lifecycle see of its engine, and what both engines have in common."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol

from tandem.kv.store import Holding
from tandem.phase.leases import Leases
from tandem.phase.loop import Load
from tandem.phase.outfit import Outfit
from tandem.phase.roster import Roster
from tandem.phase.session import ItemT, Outbox, ResultT, Session
from tandem.phase.stepper import StepPart, StepResult
from tandem.phase.waiting import WaitingRoom
from tandem.types import Phase, PhaseCommand, SequenceDropped


class StreamEnd(Protocol[ResultT]):
    """What a servicer needs of an engine."""

    def open_session(self) -> Session[ResultT]:
        """A gateway's stream has begun."""
        ...

    def command(self, session: Session[ResultT], command: PhaseCommand) -> None:
        """What came over it. DuplicateRequestError when the lease is being worked on."""
        ...

    def close_session(self, session: Session[ResultT]) -> None:
        """It has ended; its sequences are let go."""
        ...


class PhaseEngine(ABC, Generic[ItemT, ResultT]):
    """What prefill and decode do alike: leases, roster and outbox, wired to one another and to the process's steps.

    A subclass decides: who takes part in a step, and what comes of its tokens. It is a `StepWork`, a `StreamEnd` and
    what the lifecycle calls an engine; everything but the steps themselves happens on the loop.
    """

    def __init__(
        self,
        phase: Phase,
        outfit: Outfit,
        build: Callable[[tuple[ItemT, ...], tuple[SequenceDropped, ...]], ResultT],
        make_waiting_room: Callable[[], WaitingRoom[Any, ResultT]],
    ) -> None:
        """`build` makes the message for a stream of what a step has to say on it; the roster keeps the waiting room."""
        wake = outfit.steps.wake.set
        self._phase = phase
        self._outfit = outfit
        self._leases = Leases(outfit.store, outfit.holder_id, outfit.supply_policy, wake)
        self._outbox = Outbox(build)
        self._roster = Roster(
            phase,
            self._leases,
            outfit.limits,
            self._outbox,
            waiting=make_waiting_room(),
            crew=outfit.crew,
            clock=outfit.clock,
            wake=wake,
        )

    @abstractmethod
    def prepare(self) -> Sequence[StepPart]:
        """See `StepWork`."""

    @abstractmethod
    def finish(self, results: Sequence[StepResult]) -> None:
        """See `StepWork`."""

    @abstractmethod
    def fail(self, message: str) -> None:
        """See `StepWork`."""

    @abstractmethod
    def num_needed_spare(self) -> int:
        """Spare blocks that the running sequences will want before another refill could come."""

    def start(self) -> None:
        """Spawns what runs beside the steps, whose failure is the crew's, and takes part in them."""
        self._outfit.crew.spawn(self._leases.supply.run())
        self._outfit.crew.spawn(self._leases.updates.run())
        self._outfit.steps.enlist(self._phase, self)

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing more, lets what is there finish for `timeout_s`, hands the rest back, ends the streams."""
        self._roster.close_intake()
        try:
            async with asyncio.timeout(timeout_s):
                await self._roster.emptied()
        except TimeoutError:
            self._roster.hand_back()
            await self._roster.emptied()
        self._outbox.deliver()
        self._roster.close_sessions()

    def resume(self, holding: Holding) -> None:
        """memd is back, and says what this phase has."""
        self._leases.resume(holding)

    async def reclaim(self, num_blocks: int) -> None:
        """memd asks for spare blocks."""
        await self._leases.supply.reclaim(num_blocks, num_kept=self.num_needed_spare())

    def open_session(self) -> Session[ResultT]:
        """A gateway's stream has begun."""
        return self._roster.open_session()

    def command(self, session: Session[ResultT], command: PhaseCommand) -> None:
        """DuplicateRequestError when the lease is being worked on."""
        self._roster.command(session, command)

    def close_session(self, session: Session[ResultT]) -> None:
        """The stream has ended; its sequences are let go."""
        self._roster.close_session(session)

    def deliver(self) -> None:
        """One message a stream."""
        self._outbox.deliver()

    def load(self) -> Load:
        """As it is now."""
        return Load(
            num_waiting=self._roster.num_waiting,
            num_running=len(self._roster.running),
            num_spare_blocks=self._leases.supply.num_spare,
            num_backlog_tokens=self._roster.num_uncomputed if self._phase is Phase.PREFILL else 0,
        )

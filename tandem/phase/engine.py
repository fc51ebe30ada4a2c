"""What a phase's servicer and its lifecycle see of its engine, and the parts that both engines are made of."""

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from tandem.phase.leases import Leases
from tandem.phase.loop import StepWork
from tandem.phase.outfit import Outfit
from tandem.phase.roster import Roster
from tandem.phase.session import ItemT, Outbox, ResultT, Session
from tandem.types import Phase, PhaseCommand, SequenceDropped

ResultT_co = TypeVar("ResultT_co", covariant=True)


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


class EngineFrame(Generic[ItemT, ResultT]):
    """Leases, roster and outbox of one engine, wired to one another and to the process's steps.

    The engine decides (`StepWork`); the frame is how its decisions meet gateways, memd and the step's thread.
    """

    def __init__(
        self,
        phase: Phase,
        outfit: Outfit,
        build: Callable[[tuple[ItemT, ...], tuple[SequenceDropped, ...]], ResultT],
    ) -> None:
        wake = outfit.steps.wake.set
        self.leases = Leases(outfit.store, outfit.holder_id, outfit.supply_policy, wake)
        self.outbox = Outbox(build)
        self.roster = Roster(
            phase,
            self.leases,
            outfit.limits,
            self.outbox,
            crew=outfit.crew,
            clock=outfit.clock,
            wake=wake,
        )
        self._phase = phase
        self._outfit = outfit

    def start(self, work: StepWork) -> None:
        """Spawns what runs beside the steps, whose failure is the crew's, and takes part in them."""
        self._outfit.crew.spawn(self.leases.supply.run())
        self._outfit.crew.spawn(self.leases.updates.run())
        self._outfit.steps.enlist(self._phase, work)

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing more, lets what is there finish for `timeout_s`, hands the rest back, ends the streams."""
        self.roster.close_intake()
        try:
            async with asyncio.timeout(timeout_s):
                await self.roster.emptied()
        except TimeoutError:
            self.roster.hand_back()
            await self.roster.emptied()
        self.outbox.deliver()
        self.roster.close_sessions()

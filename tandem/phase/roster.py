"""The sequences that a phase has, from submission to end; what prefill and decode do alike with them."""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Any, Generic

import structlog

from tandem.clock import Clock
from tandem.errors import DuplicateRequestError
from tandem.phase.crew import Crew
from tandem.phase.keys import SequenceKeys
from tandem.phase.leases import Leases
from tandem.phase.limits import PhaseLimits, problem_of
from tandem.phase.sequence import SequenceState, WorkingSequence
from tandem.phase.session import ItemT, Outbox, ResultT, Session
from tandem.phase.waiting import WaitingRoom
from tandem.scheduler.line import Line
from tandem.scheduler.rank import rank_key
from tandem.types import AbortSequence, DropReason, Phase, PhaseCommand, SequenceDropped, SequenceSpec

_log = structlog.get_logger()


LEAVES_BETWEEN_STEPS = frozenset(
    {SequenceState.WAITING, SequenceState.FOLLOWING, SequenceState.RUNNING, SequenceState.SEALING}
)


class Intake(Enum):
    """Whether new sequences are taken."""

    OPEN = "open"
    CLOSED = "closed"  # draining: they are handed back at once


class Roster(Generic[ItemT, ResultT]):
    """Owns every `WorkingSequence`, and is the one who moves it from state to state.

    All methods are called on the loop; `settle` only between two steps.
    """

    def __init__(
        self,
        phase: Phase,
        leases: Leases,
        limits: PhaseLimits,
        outbox: Outbox[ItemT, ResultT],
        *,
        waiting: WaitingRoom[Any, ResultT],
        crew: Crew,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._create = phase is Phase.PREFILL
        self._leases = leases
        self._limits = limits
        self._outbox = outbox
        self._waiting = waiting
        self._running: Line[WorkingSequence[ResultT]] = Line(rank_key)
        self._crew = crew
        self._clock = clock
        self._wake = wake
        self._intake = Intake.OPEN
        self._sequences: dict[int, WorkingSequence[ResultT]] = {}
        self._resting_rows: dict[int, int] = {}  # by lease: rows that those lack who do not run
        self._num_resting_rows = 0  # their sum
        self._leaving: list[WorkingSequence[ResultT]] = []
        self._sessions: set[Session[ResultT]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def open_session(self) -> Session[ResultT]:
        """A gateway's stream has begun."""
        session: Session[ResultT] = Session()
        self._sessions.add(session)
        return session

    def close_session(self, session: Session[ResultT]) -> None:
        """The stream has ended: nobody wants its sequences any more."""
        self._sessions.discard(session)
        session.close()
        for sequence in tuple(self._sequences.values()):
            if sequence.session is session:
                self.leave(sequence, DropReason.ABORTED)

    def close_sessions(self) -> None:
        """Ends every stream after what has been said on it."""
        for session in self._sessions:
            session.close()

    def command(self, session: Session[ResultT], command: PhaseCommand) -> None:
        """What the gateway asks. DuplicateRequestError when the lease is being worked on."""
        if isinstance(command, AbortSequence):
            self._abort(command.lease_id)
        else:
            self._submit(session, command.sequence)

    def get(self, lease_id: int) -> WorkingSequence[ResultT]:
        """KeyError when there is none."""
        return self._sequences[lease_id]

    @property
    def num_waiting(self) -> int:
        """Sequences in state WAITING."""
        return len(self._waiting)

    @property
    def num_uncomputed(self) -> int:
        """Rows that all sequences here lack until their next token; who does not run counts as it came to its state."""
        return self._num_resting_rows + sum(sequence.num_uncomputed for sequence in self._running)

    @property
    def running(self) -> Line[WorkingSequence[ResultT]]:
        """Sequences in state RUNNING, in rank order; the roster's own."""
        return self._running

    def enter(self, sequence: WorkingSequence[ResultT], state: SequenceState) -> None:
        """LeaseError when the table has no such transition."""
        left = sequence.state
        sequence.enter(state)
        if left is SequenceState.WAITING:
            self._waiting.leave(sequence)
        elif left is SequenceState.RUNNING:
            self._running.discard(sequence.lease_id)
        if state is SequenceState.WAITING:
            self._waiting.enter(sequence)
        elif state is SequenceState.RUNNING:
            self._running.add(sequence)
        self._count_rows(sequence)

    def leave(self, sequence: WorkingSequence[ResultT], reason: DropReason, message: str = "") -> None:
        """The sequence is let go: at the next `settle`, or when its lease's answer comes. The first reason counts."""
        dropped = SequenceDropped(sequence.lease_id, reason, message)
        if sequence.state is SequenceState.ACQUIRING:
            self.enter(sequence, SequenceState.ABANDONED)
            sequence.farewell = dropped
        elif sequence.state in LEAVES_BETWEEN_STEPS:
            self.enter(sequence, SequenceState.LEAVING)
            sequence.farewell = dropped
            self._leaving.append(sequence)
        self._wake()

    def settle(self) -> None:
        """Between steps: takes note of lost leases and says farewell to those who leave."""
        for lease_id in self._leases.collect_lost():
            if lease_id in self._sequences:
                self.leave(self._sequences[lease_id], DropReason.LEASE_LOST, "memd refused an update of the lease")
        leaving, self._leaving = self._leaving, []
        for sequence in leaving:
            self._drop(sequence)

    def end(self, sequence: WorkingSequence[ResultT]) -> None:
        """The phase is done with it; what is to be said of it has been said."""
        self.enter(sequence, SequenceState.ENDED)
        self._leases.let_go(sequence.lease_id)
        del self._sequences[sequence.lease_id]
        if not self._sequences:
            self._empty.set()

    def close_intake(self) -> None:
        """From now on what is submitted is handed back."""
        self._intake = Intake.CLOSED

    def hand_back(self) -> None:
        """Everything that is left goes back to its gateway."""
        for sequence in tuple(self._sequences.values()):
            self.leave(sequence, DropReason.DRAINING)

    async def emptied(self) -> None:
        """Returns when there are no sequences."""
        await self._empty.wait()

    def _submit(self, session: Session[ResultT], spec: SequenceSpec) -> None:
        if spec.lease_id in self._sequences:
            raise DuplicateRequestError(f"lease {spec.lease_id} of {spec.request_id} is being worked on")
        if self._intake is Intake.CLOSED:
            self._refuse(session, spec, DropReason.DRAINING, "")
        elif problem := problem_of(spec, self._limits):
            self._refuse(session, spec, DropReason.FAILED, problem)
        else:
            keys = SequenceKeys(spec.cache_namespace, self._limits.block_size, spec.content_kind)
            sequence = WorkingSequence(spec, session, self._clock.now(), keys)
            self._sequences[spec.lease_id] = sequence
            self._count_rows(sequence)
            self._empty.clear()
            self._crew.spawn(self._take_in(sequence))

    def _count_rows(self, sequence: WorkingSequence[ResultT]) -> None:
        rests = sequence.state not in (SequenceState.RUNNING, SequenceState.ENDED)
        num_rows = sequence.num_uncomputed if rests else 0
        self._num_resting_rows += num_rows - self._resting_rows.pop(sequence.lease_id, 0)
        if rests:
            self._resting_rows[sequence.lease_id] = num_rows

    def _refuse(self, session: Session[ResultT], spec: SequenceSpec, reason: DropReason, message: str) -> None:
        _log.info("sequence.refused", **_fields(spec), reason=reason.name, message=message)
        self._outbox.say_dropped(session, SequenceDropped(spec.lease_id, reason, message))
        self._wake()

    def _abort(self, lease_id: int) -> None:
        if lease_id in self._sequences:
            self.leave(self._sequences[lease_id], DropReason.ABORTED)

    async def _take_in(self, sequence: WorkingSequence[ResultT]) -> None:
        answer = await self._leases.acquire(sequence.spec, create=self._create)
        if isinstance(answer, SequenceDropped):
            sequence.farewell = sequence.farewell or answer
            self._drop(sequence)
        elif sequence.state is SequenceState.ABANDONED:
            self._drop(sequence)
        else:
            sequence.adopt(answer)
            self.enter(sequence, SequenceState.WAITING)
        self._wake()

    def _drop(self, sequence: WorkingSequence[ResultT]) -> None:
        farewell = sequence.farewell
        assert farewell is not None
        _log.info("sequence.dropped", **_fields(sequence.spec), reason=farewell.reason.name, message=farewell.message)
        self._outbox.say_dropped(sequence.session, farewell)
        self.end(sequence)


def _fields(spec: SequenceSpec) -> dict[str, object]:
    return {"request_id": spec.request_id, "lease_id": spec.lease_id}

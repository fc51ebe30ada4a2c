"""The sequences that wait, as their phase's scheduler sees them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from tandem.phase.sequence import WorkingSequence
from tandem.phase.session import ResultT

CandidateT_contra = TypeVar("CandidateT_contra", contravariant=True)


class Candidates(Protocol[CandidateT_contra]):
    """What a scheduler decides over: `tandem.scheduler.line.Line`, or more than one of them."""

    def __len__(self) -> int: ...

    def add(self, candidate: CandidateT_contra, /) -> None:
        """It waits from now on."""
        ...

    def discard(self, lease_id: int) -> None:
        """It waits no longer."""
        ...


@dataclass(frozen=True, slots=True)
class WaitingRoom(Generic[CandidateT_contra, ResultT]):
    """Written by the roster, at every sequence's coming and going; read by the scheduler.

    A sequence is looked at once: while it waits, nothing changes of what `view` says of it.
    """

    candidates: Candidates[CandidateT_contra]
    view: Callable[[WorkingSequence[ResultT]], CandidateT_contra]

    def __len__(self) -> int:
        return len(self.candidates)

    def enter(self, sequence: WorkingSequence[ResultT]) -> None:
        """It waits from now on."""
        self.candidates.add(self.view(sequence))

    def leave(self, sequence: WorkingSequence[ResultT]) -> None:
        """It waits no longer."""
        self.candidates.discard(sequence.lease_id)

"""Who is of the fleet: the states of a replica, and which may follow which. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class ReplicaState(StrEnum):
    """Of a memd with its phases. Whoever is not known is gone."""

    JOINED = "joined"  # gets sequences
    LEAVING = "leaving"  # ends what it has
    GONE = "gone"


TRANSITIONS: Mapping[ReplicaState, frozenset[ReplicaState]] = MappingProxyType(
    {
        ReplicaState.GONE: frozenset({ReplicaState.JOINED}),
        ReplicaState.JOINED: frozenset({ReplicaState.LEAVING, ReplicaState.GONE}),
        ReplicaState.LEAVING: frozenset({ReplicaState.GONE}),
    }
)


@dataclass(frozen=True, slots=True)
class Membership:
    """The replicas that are not gone, in the order in which they joined."""

    states: Mapping[str, ReplicaState] = field(default_factory=dict)
    serving: tuple[str, ...] = field(init=False, compare=False)  # those that get sequences: asked for at every request

    def __post_init__(self) -> None:
        joined = (replica_id for replica_id, state in self.states.items() if state is ReplicaState.JOINED)
        object.__setattr__(self, "serving", tuple(joined))

    def state(self, replica_id: str) -> ReplicaState:
        """Of any name."""
        return self.states.get(replica_id, ReplicaState.GONE)

    def moved(self, replica_id: str, state: ReplicaState) -> "Membership":
        """With that replica in that state. ValueError when the table has no such transition."""
        before = self.state(replica_id)
        if state not in TRANSITIONS[before]:
            raise ValueError(f"replica {replica_id}: {before.value} does not lead to {state.value}")
        states = {**self.states, replica_id: state}
        if state is ReplicaState.GONE:
            del states[replica_id]
        return Membership(states)

"""What decides the split: observations in, a plan out; no I/O, no clock."""

from dataclasses import dataclass
from typing import Protocol

from tandem.partition.observations import Observations
from tandem.types import Split


@dataclass(frozen=True, slots=True)
class Plan:
    """The split that should be in force, and why."""

    split: Split
    reason: str


class Planner(Protocol):
    """A pure policy. The same observations and split in give the same plan out."""

    @property
    def name(self) -> str:
        """As in configuration and logs (``static``)."""
        ...

    def plan(self, observations: Observations, current: Split) -> Plan:
        """Asked after every observation; a plan that equals `current` changes nothing."""
        ...

"""What decides the split: observations in, a plan out; no I/O, no clock."""

from dataclasses import dataclass
from typing import Protocol

from tandem.partition.observations import Observations
from tandem.types import Split


@dataclass(frozen=True, slots=True)
class Prediction:
    """What requests that come now will see under a split, by the planner's models."""

    ttft_p90_ms: float
    tpot_p90_ms: float
    attainment: float  # the share of requests that meet both SLOs


@dataclass(frozen=True, slots=True)
class AdmissionAdvice:
    """No split meets the SLOs for all: `admit_share` of the arriving requests could be served within them."""

    admit_share: float  # in [0, 1)
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The split that should be in force, and why."""

    split: Split
    reason: str
    predicted: Prediction | None = None  # under `split`; None: this planner does not predict, or knows too little
    admission: AdmissionAdvice | None = None


class Planner(Protocol):
    """A pure policy. The same observations and split in give the same plan out."""

    @property
    def name(self) -> str:
        """As in configuration and logs (``static``)."""
        ...

    def plan(self, observations: Observations, current: Split) -> Plan:
        """Asked again and again; a plan that equals `current` changes nothing.

        What is planned is `current`, the configured split, or one of `observations.splits`.
        """
        ...

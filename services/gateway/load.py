"""How much the gateway takes on, and how much it has."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.gateway.prospects import Promise
from services.gateway.requests import Request, Sequence
from tandem.types import Phase


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much the gateway takes on."""

    max_waiting: int  # requests
    max_running: int  # sequences
    max_waiting_tokens: int  # of the prompts of requests that wait
    refuse_after_s: float  # of waiting for a first turn
    max_waiting_of: Callable[[str], int | None]  # requests of one tenant; None: no bound of its own
    promise: Promise


@dataclass(frozen=True, slots=True)
class Attempt:
    """A lease that a phase has. Its sequence may have ended for the client, or gone on in another lease, already."""

    sequence: Sequence
    phase: Phase
    num_tokens: int  # when it was sent


@dataclass(frozen=True, slots=True)
class Load:
    """Clients' sequences by where they are."""

    num_waiting: int
    num_prefilling: int
    num_decoding: int

    def __add__(self, other: "Load") -> "Load":
        return Load(
            self.num_waiting + other.num_waiting,
            self.num_prefilling + other.num_prefilling,
            self.num_decoding + other.num_decoding,
        )


def load_of(num_queued: int, attempts: Iterable[Attempt], num_between: int, builds: Iterable[Request]) -> Load:
    """`num_between` are between the phases. `builds`, which the gateway has made for itself, are not counted."""
    num_queued_builds = sum(len(build.queued) for build in builds)
    at = Counter(attempt.phase for attempt in attempts if not attempt.sequence.arrival.is_build)
    return Load(num_queued - num_queued_builds, at[Phase.PREFILL], at[Phase.DECODE] + num_between)

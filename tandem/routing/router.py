"""Which replica a sequence goes to. Pure: routers see prospects, one a replica, and choose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a sequence may expect of one replica."""

    replica_id: str
    num_exact_tokens: int
    num_segment_tokens: int
    num_computed_tokens: int
    wait_s: float  # until the prompts before it are computed
    compute_s: float  # for what is computed of its own
    utilisation: float  # of its time for prompts, by what was routed there of late
    load_s: float  # what decode's blocks there count for, see `tandem.routing.fleet`
    last_turn: int  # the number of the choice that fell on this replica last, 0 before the first

    @property
    def ttft_s(self) -> float:
        """As predicted."""
        return self.wait_s + self.compute_s

    @property
    def busy_s(self) -> float:
        """Without the sequence itself."""
        return self.wait_s + self.load_s


class Router(Protocol):
    """A way to choose."""

    def choose(self, prospects: Sequence[Prospect]) -> Prospect:
        """One of them; there is at least one."""
        ...


class RoundRobin:
    """Who was chosen longest ago; who has just joined is next."""

    def choose(self, prospects: Sequence[Prospect]) -> Prospect:
        """See `Router`."""
        return min(prospects, key=lambda each: each.last_turn)


class LeastLoaded:
    """Who has least to do, whatever is cached where."""

    def choose(self, prospects: Sequence[Prospect]) -> Prospect:
        """See `Router`."""
        return min(prospects, key=lambda each: (each.busy_s, each.last_turn))

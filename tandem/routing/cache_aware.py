"""The default: the replica with the least predicted TTFT, by what its cache has of the prompt.

After SGLang's and Preble's routers: a balance of what is cached against who is busy, with a little exploration.
"""

import random
from collections.abc import Sequence

from tandem.routing.router import LeastLoaded, Prospect

MOST_UTILISED = 0.8  # beyond that a replica counts as no busier
EXPLORED = 0.01  # of the choices, whatever is predicted: a cold replica's cache fills, a wrong belief is found out
IMBALANCE_RATIO = 2.0  # both together are too much: its queue over that of the least loaded,
IMBALANCE_S = 4.0  # and how much longer it is


class CacheAware:
    """Least cost; of equals who was chosen longest ago."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._least_loaded = LeastLoaded()

    def choose(self, prospects: Sequence[Prospect]) -> Prospect:
        """See `Router`."""
        if self._rng.random() < EXPLORED:
            return self._rng.choice(prospects)
        best = min(prospects, key=lambda each: (cost_s(each), each.last_turn))
        idlest = self._least_loaded.choose(prospects)
        return idlest if _is_imbalanced(best, idlest) else best


def cost_s(prospect: Prospect) -> float:
    """Predicted TTFT, decode's load, and what the sequence costs others: its work delays whoever comes behind.

    In a queue that is busy for a part rho of its time, a second of work lasts 1 / (1 - rho) until it is made up for.
    """
    delay_s = prospect.compute_s / (1.0 - min(prospect.utilisation, MOST_UTILISED))
    return prospect.ttft_s + prospect.load_s + delay_s


def _is_imbalanced(best: Prospect, idlest: Prospect) -> bool:
    """One cached prefix must not gather everybody at one replica."""
    return best.busy_s > IMBALANCE_RATIO * idlest.busy_s and best.busy_s - idlest.busy_s > IMBALANCE_S

"""How a run's time is divided among its stages; pure."""

from collections.abc import Sequence

KEPT_BACK_S = 12.0  # to end what runs, daemons too, and write the last results
BETWEEN_S = 1.0  # two stages: processes and daemons end
LEAST_S = 5.0  # in less nothing would be learnt


def limit_s(weights: Sequence[float], left_s: float) -> float:
    """Of the first of the stages that are yet to come, each by its weight, of what is left; 0: it is not to begin.

    What a stage does not use is so divided among those behind it.
    """
    usable_s = left_s - KEPT_BACK_S - BETWEEN_S * len(weights)
    limit = usable_s * weights[0] / sum(weights)
    return limit if limit >= LEAST_S else 0.0

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


def limits_s(weights: Sequence[float], total_s: float) -> list[float]:
    """Of all stages, if each takes all that it is allowed."""
    limits: list[float] = []
    left_s = total_s
    for index in range(len(weights)):
        limits.append(limit_s(weights[index:], left_s))
        left_s -= limits[-1] + BETWEEN_S
    return limits

"""How much time a section gets; pure."""

KEPT_BACK_S = 5.0  # to end what runs, and write the last results
LEAST_S = 5.0  # in less nothing would be learnt


def allowance_s(limit_s: float, elapsed_s: float, total_s: float) -> float:
    """Of a section that may take `limit_s`, when `elapsed_s` of `total_s` are gone; 0: it is not to begin."""
    left_s = total_s - elapsed_s - KEPT_BACK_S
    return min(limit_s, left_s) if left_s >= LEAST_S else 0.0

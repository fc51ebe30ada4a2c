"""How the GPU benchmark divides its time; nothing is run."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu import __main__ as command
from bench.gpu.budget import BETWEEN_S, KEPT_BACK_S, LEAST_S, limit_s
from bench.gpu.sections import STAGES

STAGE_WEIGHTS = [stage.weight for stage in STAGES]
TOTAL_S = command.MINUTES * 60
positive = st.floats(0.1, 200)


def limits_s(weights: Sequence[float], total_s: float) -> list[float]:
    """Of all stages, if each takes all that it is allowed."""
    limits: list[float] = []
    left_s = total_s
    for index in range(len(weights)):
        limits.append(limit_s(weights[index:], left_s))
        left_s -= limits[-1] + BETWEEN_S
    return limits


def test_the_whole_run_is_shorter_than_nine_minutes_and_every_stage_has_its_turn() -> None:
    limits = limits_s(STAGE_WEIGHTS, TOTAL_S)
    assert TOTAL_S < 9 * 60
    assert sum(limits) + BETWEEN_S * len(limits) + KEPT_BACK_S == pytest.approx(TOTAL_S)
    assert min(limits) > 3 * LEAST_S


def test_what_the_stages_may_well_take_is_no_more_than_they_get() -> None:
    for weight, limit in zip(STAGE_WEIGHTS, limits_s(STAGE_WEIGHTS, TOTAL_S), strict=True):
        assert weight <= limit


@given(st.lists(positive, min_size=1, max_size=15), st.floats(1, 900))
def test_limits_never_add_up_to_more_than_there_is(weights: list[float], total_s: float) -> None:
    limits = limits_s(weights, total_s)
    assert all(limit == 0 or limit >= LEAST_S for limit in limits)
    begun = [limit for limit in limits if limit]
    assert not begun or sum(begun) + BETWEEN_S * len(begun) + KEPT_BACK_S <= total_s + 1e-6  # sums of floats round


@given(st.lists(st.tuples(positive, st.floats(0, 1)), min_size=1, max_size=15), st.floats(60, 900))
def test_whatever_stages_take_of_their_limits_the_last_one_ends_in_time(
    stages: list[tuple[float, float]], total_s: float
) -> None:
    weights, elapsed_s = [weight for weight, _ in stages], 0.0
    for index, (_, used) in enumerate(stages):
        limit = limit_s(weights[index:], total_s - elapsed_s)
        elapsed_s += used * limit
        if limit:
            assert elapsed_s <= total_s - KEPT_BACK_S + 1e-6
            elapsed_s += BETWEEN_S


def test_what_a_stage_leaves_is_divided_among_those_behind_it() -> None:
    total_s = KEPT_BACK_S + 3 * BETWEEN_S + 60
    assert limits_s([1, 1, 1], total_s) == pytest.approx([20, 20, 20])
    left_s = total_s - BETWEEN_S - 10  # the first took half of its time
    assert limit_s([1, 1], left_s) == pytest.approx(25)


def test_a_stage_for_which_too_little_is_left_is_not_begun() -> None:
    assert limit_s([1], KEPT_BACK_S + BETWEEN_S + LEAST_S - 0.1) == 0
    assert limits_s([1, 99], KEPT_BACK_S + 2 * BETWEEN_S + 100) == pytest.approx([0, 100 + 0], abs=BETWEEN_S)

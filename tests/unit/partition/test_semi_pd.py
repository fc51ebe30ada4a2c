import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.partition.latency_fit import fit_tpot, fit_ttft
from tandem.partition.observations import Observations, WindowSummary
from tandem.partition.semi_pd import MAX_STEPS, SemiPdPlanner
from tandem.partition.slo import Slo
from tandem.types import Split
from tests.support.observed import SPLITS

PLANNER = SemiPdPlanner(Slo(ttft_ms=500.0, tpot_ms=50.0))


def window(split, ttft_ms, tpot_ms, rate=2.0, is_mixed=False) -> WindowSummary:
    return WindowSummary(10.0, split, is_mixed, 20, rate, ttft_ms, tpot_ms)


def planned(history, current, now_s=10.0) -> Split:
    return PLANNER.plan(Observations(now_s=now_s, splits=SPLITS, history=tuple(history)), current).split


def test_the_fit_finds_the_curve_that_made_the_windows():
    made = [
        window(Split(x, 100 - x), 60.0 / (x / 100 - 0.1) + 20.0, 9.0 / (1 - x / 100) + 4.0)
        for x in (20, 35, 50, 65, 80)
    ]
    ttft, tpot = fit_ttft(made), fit_tpot(made)
    for x in (0.3, 0.6):
        assert ttft.at(x) == pytest.approx(60.0 / (x - 0.1) + 20.0, rel=0.05)
        assert tpot.at(x) == pytest.approx(9.0 / x + 4.0, rel=1e-6)


def test_it_acts_only_when_a_window_has_just_closed():
    assert planned([window(SPLITS[2], 900.0, 10.0)], SPLITS[2], now_s=11.0) == SPLITS[2]
    assert planned([window(SPLITS[2], 900.0, 10.0)], SPLITS[2]) != SPLITS[2]


def test_with_both_met_nothing_changes():
    assert planned([window(SPLITS[1], 400.0, 49.0)], SPLITS[1]) == SPLITS[1]


def test_who_misses_gets_more():
    assert planned([window(SPLITS[2], 600.0, 10.0)], SPLITS[2]).prefill_percent > 50
    assert planned([window(SPLITS[2], 100.0, 60.0)], SPLITS[2]).decode_percent > 50


def test_a_larger_miss_moves_further_and_no_further_than_the_steps_allowed():
    assert planned([window(SPLITS[0], 600.0, 10.0)], SPLITS[0]) == SPLITS[1]
    assert planned([window(SPLITS[0], 1e6, 10.0)], SPLITS[0]) == SPLITS[MAX_STEPS]


def test_of_two_misses_the_larger_one_decides():
    assert planned([window(SPLITS[2], 2000.0, 60.0)], SPLITS[2]).prefill_percent > 50
    assert planned([window(SPLITS[2], 600.0, 500.0)], SPLITS[2]).decode_percent > 50


def test_who_has_all_that_is_on_offer_stays():
    assert planned([window(SPLITS[4], 900.0, 10.0)], SPLITS[4]) == SPLITS[4]


milliseconds = st.floats(0, 1e7)
windows = st.builds(window, st.sampled_from(SPLITS), milliseconds, milliseconds, st.floats(0, 1e5), st.booleans())


@given(st.lists(windows, min_size=1, max_size=32), st.sampled_from(SPLITS))
def test_whatever_was_seen_the_plan_is_on_offer(history, current):
    assert planned(history, current) in SPLITS

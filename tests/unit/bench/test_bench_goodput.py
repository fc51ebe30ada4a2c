"""The search for goodput, on curves that are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.goodput import RateSample, Search, bounds_of, default_slo, find_goodput
from bench.load.metrics import Slo


def falling(knee: float):
    """All requests meet the SLO up to the knee, then ever fewer."""
    return lambda rate: 1.0 if rate <= knee else max(0.0, 1.0 - (rate - knee) / knee)


@given(knee=st.floats(0.05, 500), start=st.floats(0.05, 500), target=st.floats(0.5, 1.0))
def test_a_monotonic_curve_is_met_within_the_tolerance(knee, start, target):
    measure = falling(knee)
    found = find_goodput(measure, Search(start, target=target, tolerance=0.02, max_runs=60))
    limit = knee * (2 - target)  # where the curve crosses the target
    assert measure(found.rate_per_s) >= target
    assert limit / 1.021 <= found.rate_per_s <= limit * (1 + 1e-9)
    assert found.first_failing_rate_per_s is not None
    assert measure(found.first_failing_rate_per_s) < target


def test_the_number_of_runs_is_bounded():
    rates: list[float] = []

    def measure(rate: float) -> float:
        rates.append(rate)
        return 0.0

    found = find_goodput(measure, Search(8.0, max_runs=4))
    assert rates == [8.0, 4.0, 2.0, 1.0]
    assert found.rate_per_s == 0
    assert found.first_failing_rate_per_s == 1.0
    assert [sample.rate_per_s for sample in found.samples] == rates


def test_a_deployment_that_never_fails_is_said_to_be_unbounded():
    found = find_goodput(lambda rate: 1.0, Search(1.0, max_runs=5))
    assert found.rate_per_s == 16.0
    assert found.first_failing_rate_per_s is None


def test_exactly_the_target_passes():
    assert find_goodput(lambda rate: 0.9, Search(1.0, max_runs=1)).rate_per_s == 1.0


def test_a_lucky_pass_above_a_failure_does_not_count():
    samples = [RateSample(1, 1.0), RateSample(4, 0.5), RateSample(5, 0.95)]
    assert bounds_of(samples, 0.9).passing == 1
    assert bounds_of(samples, 0.9).failing == 4


def test_the_default_slo_has_the_papers_margins():
    assert default_slo(100.0, 20.0) == Slo(750.0, 200.0)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_noisy_curve_still_ends_near_its_knee(noise):
    turn = iter(range(1000))
    measure = falling(10.0)
    found = find_goodput(lambda rate: measure(rate) + noise * (-1) ** next(turn), Search(1.0, max_runs=20))
    assert found.rate_per_s == pytest.approx(11.0, rel=0.1)

"""The search for goodput, on curves that are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.goodput import (
    Goodput,
    RateSample,
    Search,
    bounds_of,
    crossing_rate,
    default_slo,
    find_goodputs,
    rates_by_seed,
)
from bench.load.metrics import Slo

ALONE = "a"


def falling(knee: float):
    """All requests meet the SLO up to the knee, then ever fewer."""
    return lambda rate: 1.0 if rate <= knee else max(0.0, 1.0 - (rate - knee) / knee)


def find_one(curve, search: Search) -> Goodput:
    return find_goodputs([ALONE], lambda names, rate: {ALONE: [curve(rate)]}, search)[ALONE]


@given(knee=st.floats(0.05, 500), start=st.floats(0.05, 500), target=st.floats(0.5, 1.0))
def test_a_monotonic_curve_is_met_within_the_tolerance(knee, start, target):
    curve = falling(knee)
    found = find_one(curve, Search(start, target=target, tolerance=0.02, max_probes=60))
    limit = knee * (2 - target)  # where the curve crosses the target
    assert curve(found.rate_per_s) >= target
    assert limit / 1.021 <= found.rate_per_s <= limit * (1 + 1e-9)
    assert found.first_failing_rate_per_s is not None
    assert curve(found.first_failing_rate_per_s) < target


@given(knees=st.lists(st.floats(0.5, 50), min_size=1, max_size=5), start=st.floats(0.5, 50))
def test_side_by_side_finds_what_each_alone_would(knees, start):
    curves = {str(number): falling(knee) for number, knee in enumerate(knees)}
    measure = lambda names, rate: {name: [curves[name](rate)] for name in names}  # noqa: E731
    found = find_goodputs(list(curves), measure, Search(start, tolerance=0.02, max_probes=60))
    for name, knee in zip(curves, knees, strict=True):
        assert knee * 1.1 / 1.021 <= found[name].rate_per_s <= knee * 1.1 * (1 + 1e-9)


def test_a_rate_is_probed_on_all_that_it_says_something_about_before_the_search_goes_on():
    probes: list[tuple[tuple[str, ...], float]] = []
    curves = {"slow": falling(1.0), "fast": falling(4.0)}

    def measure(names, rate):
        probes.append((tuple(names), rate))
        return {name: [curves[name](rate)] for name in names}

    find_goodputs(list(curves), measure, Search(1.0, tolerance=0.5))
    assert probes[0] == (("slow", "fast"), 1.0)
    assert probes[1] == (("slow", "fast"), 2.0)
    assert (("fast",), 4.0) in probes
    assert all("slow" not in names for names, rate in probes if rate > 2.0)
    assert len({(name, rate) for names, rate in probes for name in names}) == sum(len(names) for names, _ in probes)


def test_the_number_of_probes_is_bounded():
    rates: list[float] = []

    def curve(rate: float) -> float:
        rates.append(rate)
        return 0.0

    found = find_one(curve, Search(8.0, max_probes=4))
    assert rates == [8.0, 4.0, 2.0, 1.0]
    assert found.rate_per_s == 0
    assert found.first_failing_rate_per_s == 1.0
    assert [sample.rate_per_s for sample in found.samples] == rates


def test_a_deployment_that_never_fails_is_said_to_be_unbounded():
    found = find_one(lambda rate: 1.0, Search(1.0, max_probes=5))
    assert found.rate_per_s == 16.0
    assert found.first_failing_rate_per_s is None


def test_exactly_the_target_passes():
    assert find_one(lambda rate: 0.9, Search(1.0, max_probes=1)).rate_per_s == 1.0


def test_a_lucky_pass_above_a_failure_does_not_count():
    samples = [RateSample(1, 1.0), RateSample(4, 0.5), RateSample(5, 0.95)]
    assert bounds_of(samples, 0.9).passing == 1
    assert bounds_of(samples, 0.9).failing == 4


def test_a_probes_attainment_is_its_seeds_mean():
    found = find_goodputs([ALONE], lambda names, rate: {ALONE: [0.8, 1.0]}, Search(1.0, max_probes=1))[ALONE]
    assert found.samples == (RateSample(1.0, pytest.approx(0.9), (0.8, 1.0)),)
    assert found.rate_per_s == 1.0


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ({1.0: 1.0, 2.0: 0.8}, 1.5),
        ({2.0: 0.8, 1.0: 1.0, 4.0: 0.0}, 1.5),
        ({1.0: 0.9, 2.0: 0.4}, 1.0),
        ({1.0: 1.0, 2.0: 0.95}, None),
        ({1.0: 0.5, 2.0: 0.4}, None),
        ({}, None),
    ],
)
def test_a_curve_is_crossed_between_two_of_its_points(points, expected):
    assert crossing_rate(points, 0.9) == (None if expected is None else pytest.approx(expected))


def test_each_seed_has_a_crossing_of_its_own():
    samples = (RateSample(1.0, 0.95, (1.0, 0.9)), RateSample(2.0, 0.7, (0.8, 0.6)))
    assert rates_by_seed(Goodput(1.0, 2.0, samples), 0.9) == pytest.approx((1.5, 1.0))
    assert rates_by_seed(Goodput(0.0, None, ()), 0.9) == ()


def test_the_default_slo_has_the_papers_margins():
    assert default_slo(100.0, 20.0) == Slo(750.0, 200.0)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_noisy_curve_still_ends_near_its_knee(noise):
    turn = iter(range(1000))
    curve = falling(10.0)
    found = find_one(lambda rate: curve(rate) + noise * (-1) ** next(turn), Search(1.0, max_probes=20))
    assert found.rate_per_s == pytest.approx(11.0, rel=0.1)

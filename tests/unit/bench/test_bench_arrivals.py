"""When requests come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workloads.arrivals import Arrival, ArrivalKind, parse_arrival, send_times, stretched
from tandem.errors import ConfigError

COUNT = 20_000


def gaps(text: str, rate_per_s: float) -> np.ndarray:
    return np.diff(send_times(parse_arrival(text), np.random.default_rng(5), COUNT, rate_per_s, ()))


@pytest.mark.parametrize("text", ["poisson", "gamma:1", "gamma:3", "gamma:0.5"])
def test_the_rate_is_the_one_asked_for(text):
    assert gaps(text, 4.0).mean() == pytest.approx(0.25, rel=0.06)


@pytest.mark.parametrize(("text", "variation"), [("poisson", 1.0), ("gamma:3", 3.0), ("gamma:0.5", 0.5)])
def test_burstiness_is_the_one_asked_for(text, variation):
    found = gaps(text, 4.0)
    assert found.std() / found.mean() == pytest.approx(variation, rel=0.08)


def test_poisson_gaps_are_exponential():
    assert (gaps("poisson", 1.0) > 1.0).mean() == pytest.approx(np.exp(-1), abs=0.02)


@pytest.mark.parametrize("text", ["trace", "poisson", "gamma:2.5", "closed:8"])
def test_an_arrival_is_written_as_it_is_read(text):
    assert parse_arrival(text).text == text


@pytest.mark.parametrize("text", ["", "often", "gamma:x", "gamma:0", "gamma:-1", "gamma:inf", "closed:0", "closed:0.5"])
def test_what_is_no_arrival_is_refused(text):
    with pytest.raises(ConfigError, match="arrival"):
        parse_arrival(text)


def test_a_closed_loop_has_users_and_no_times():
    arrival = parse_arrival("closed:8")
    assert arrival.num_users == 8
    assert send_times(arrival, np.random.default_rng(0), 3, 1.0, ()) == [0.0, 0.0, 0.0]


def test_only_a_closed_loop_has_users():
    assert parse_arrival("gamma:3").num_users is None


@given(st.lists(st.floats(0, 1e5), min_size=2, max_size=50).map(sorted), st.floats(0.01, 100))
def test_a_stretched_trace_keeps_the_proportions_of_its_gaps(trace_s, rate_per_s):
    times_s = stretched(trace_s, rate_per_s)
    span_s = trace_s[-1] - trace_s[0]
    assert times_s[0] == 0
    assert times_s == sorted(times_s)
    if span_s > 0:
        assert times_s[-1] == pytest.approx((len(trace_s) - 1) / rate_per_s)
        expected = [(at_s - trace_s[0]) / span_s for at_s in trace_s]
        assert [at_s / times_s[-1] for at_s in times_s] == pytest.approx(expected, abs=1e-6)


def test_a_trace_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="2 arrival times, 3 are needed"):
        send_times(Arrival(ArrivalKind.TRACE), np.random.default_rng(0), 3, 1.0, (0.0, 1.0))

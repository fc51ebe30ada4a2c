import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.partition.observations import (
    RATE_HORIZON_S,
    LatencyStatistics,
    RequestWindow,
    StepWindow,
    latency_statistics,
    percentile,
)
from tandem.partition.slo import Slo, SloPolicy
from tandem.types import RequestClass, RequestObservation, StepStatistics

latencies = st.floats(0, 1e6)


def request(ttft_ms=10.0, tpot_ms=5.0, num_output_tokens=2, ok=True) -> RequestObservation:
    return RequestObservation("r", ttft_ms, 1.0, 9.0, tpot_ms, 4, num_output_tokens, 0, ok, 0, 0)


def step(duration_ms=10.0, num_tokens=8) -> StepStatistics:
    return StepStatistics(duration_ms, 1, num_tokens, 100, 0, 0)


@given(st.lists(latencies, min_size=1), st.floats(0, 100))
def test_percentiles_are_numpys(values, percent):
    assert percentile(sorted(values), percent) == pytest.approx(np.percentile(values, percent))


@given(st.lists(st.floats()))
def test_no_value_spoils_the_statistics(values):
    statistics = latency_statistics(values)
    assert 0 <= statistics.p50_ms <= statistics.p99_ms < math.inf
    assert statistics.num_samples == sum(1 for value in values if 0 <= value < math.inf)


def test_an_empty_window():
    assert RequestWindow(4).statistics().ttft == LatencyStatistics(0, 0.0, 0.0)
    assert StepWindow().statistics(5.0).tokens_per_s == 0


def test_only_the_newest_requests_count():
    window = RequestWindow(3)
    for ttft_ms in (1000.0, 1.0, 2.0, 3.0):
        window.add(request(ttft_ms))
    statistics = window.statistics()
    assert (statistics.ttft.num_samples, statistics.ttft.p50_ms) == (3, 2.0)
    assert statistics.num_observed_total == 4


def test_a_request_attains_what_its_class_is_promised():
    slos = SloPolicy(Slo(100.0, 10.0), {RequestClass.BATCH: Slo(1000.0, 10.0)})
    window = RequestWindow(10, slos)
    kept = [request(100.0, 10.0), request(50.0, 99.0, num_output_tokens=1), request(900.0)]
    kept[2] = replace(kept[2], request_class=RequestClass.BATCH)
    broken = [request(101.0), request(50.0, 10.5), request(ok=False), request(math.nan)]
    for each in (*kept, *broken):
        window.add(each)
    statistics = window.statistics()
    assert (statistics.num_in_window, statistics.num_attained) == (7, 3)


def test_failed_requests_have_no_latency():
    window = RequestWindow(10)
    window.add(request(10.0))
    window.add(request(5000.0, ok=False))
    statistics = window.statistics()
    assert (statistics.num_failed, statistics.ttft.num_samples, statistics.ttft.p99_ms) == (1, 1, 10.0)


def test_a_single_token_has_no_tpot():
    window = RequestWindow(10)
    window.add(request(tpot_ms=0.0, num_output_tokens=1))
    window.add(request(tpot_ms=7.0))
    assert window.statistics().tpot == LatencyStatistics(1, 7.0, 7.0, 7.0)


def test_a_bad_field_leaves_the_others_alone():
    window = RequestWindow(10)
    window.add(request(ttft_ms=math.nan, tpot_ms=7.0))
    window.add(request(ttft_ms=-1.0, tpot_ms=math.inf))
    statistics = window.statistics()
    assert statistics.ttft.num_samples == 0
    assert statistics.tpot == LatencyStatistics(1, 7.0, 7.0, 7.0)


def test_the_rate_is_over_the_last_seconds_and_falls_when_idle():
    window = StepWindow()
    for tenth in range(10):
        window.add(step(num_tokens=10), now_s=tenth / 10)
    assert window.statistics(1.0).tokens_per_s == pytest.approx(100 / RATE_HORIZON_S)
    assert window.statistics(RATE_HORIZON_S + 0.45).tokens_per_s == pytest.approx(50 / RATE_HORIZON_S)
    assert window.statistics(RATE_HORIZON_S + 1).tokens_per_s == 0


def test_the_rate_of_a_window_too_short_for_the_horizon():
    window = StepWindow(size=5)
    for tenth in range(10):
        window.add(step(num_tokens=10), now_s=tenth / 10)
    assert window.statistics(1.0).tokens_per_s == pytest.approx(50 / 0.5)


@given(st.lists(st.tuples(st.floats(), st.integers(-5, 100)), max_size=20), st.integers(1, 8))
def test_steps_never_spoil_the_rate(steps, size):
    window = StepWindow(size)
    for duration_ms, num_tokens in steps:
        window.add(step(duration_ms, num_tokens), now_s=1.0)
    statistics = window.statistics(1.0)
    assert 0 <= statistics.tokens_per_s < math.inf
    assert statistics.step.num_samples <= size

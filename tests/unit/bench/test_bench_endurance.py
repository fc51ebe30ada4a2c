"""What counts as growth, and what a lasting load tells."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.endurance.results import ProcessSeries, ProcessWindow
from bench.endurance.run import latency_windows, process_judgements, request_judgements
from bench.endurance.trend import Allowance, Verdict, peaks_of, theil_sen, trend_of, variance_factor
from bench.endurance.watch import Watch
from bench.load.endpoint import EndpointSpec, Protocols
from bench.load.lasting import Ended, Started, Tick, lasting_load
from bench.load.metrics import Slo
from bench.load.process import LoadJob
from bench.workloads.request import PlannedRequest, Span, Workload
from bench.workloads.tokens import PromptsOnDemand, TokenRange, all_prompts
from tandem.clock import MonotonicClock
from tandem.errors import NotReadyError

DURATION_S = 3600.0
AT_S = [(number + 0.5) * 30 for number in range(120)]
TENTH = Allowance(share=0.1, amount=0.0)


def noisy(growth: float, noise: float, seed: int = 1) -> list[float]:
    """From 100 on, by `growth` over the run, beside independent noise."""
    drawn = np.random.default_rng(seed).normal(0.0, noise, len(AT_S))
    return [100 + growth * at_s / DURATION_S + each for at_s, each in zip(AT_S, drawn, strict=True)]


@pytest.mark.parametrize(
    ("growth", "noise", "verdict"),
    [
        (0.0, 0.0, Verdict.HELD),
        (0.0, 5.0, Verdict.HELD),
        (30.0, 5.0, Verdict.GREW),
        (12.0, 0.1, Verdict.HELD),  # a certain trend of less than is allowed over the two thirds that count
        (-30.0, 5.0, Verdict.HELD),
        (0.0, 100.0, Verdict.UNCLEAR),
    ],
)
def test_growth_is_held_against_what_is_allowed_and_against_noise(growth, noise, verdict):
    assert trend_of(AT_S, noisy(growth, noise), DURATION_S, TENTH).verdict is verdict


def test_what_grows_in_the_warm_up_alone_has_not_grown():
    values = [100.0 + min(at_s, DURATION_S / 3) for at_s in AT_S]
    trend = trend_of(AT_S, values, DURATION_S, TENTH)
    assert (trend.verdict, trend.first, trend.last, trend.per_hour) == (Verdict.HELD, 1300.0, 1300.0, 0.0)


def test_a_slope_is_told_by_the_hour_with_its_bounds():
    trend = trend_of(AT_S, noisy(30.0, 2.0), DURATION_S, TENTH)
    assert trend.per_hour == pytest.approx(30.0, abs=3.0)
    assert trend.low_per_hour < 30.0 < trend.high_per_hour
    assert trend.high_per_hour - trend.low_per_hour < 10.0


def test_wild_values_do_not_move_a_slope():
    values = np.array(noisy(30.0, 1.0))
    values[::5] += 1e6
    assert theil_sen(np.array(AT_S), values).estimate * 3600 == pytest.approx(30.0, abs=5.0)


def test_noise_that_lasts_widens_the_bounds():
    generator = np.random.default_rng(3)
    drawn = generator.normal(0.0, 1.0, 200)
    lasting = np.zeros(200)
    for index in range(1, 200):
        lasting[index] = 0.9 * lasting[index - 1] + drawn[index]
    assert variance_factor(drawn) < 2
    assert variance_factor(lasting) > 4
    assert variance_factor(np.ones(50)) == 1.0


@given(st.floats(-5, 5), st.floats(0.1, 10), st.integers(3, 40))
def test_a_straight_line_has_its_own_slope(slope, step, count):
    times = np.arange(count) * step
    found = theil_sen(times, 7 + slope * times)
    assert found.low <= found.estimate <= found.high
    assert found.estimate == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(("of_the_last_third", "verdict"), [(20, Verdict.HELD), (19, Verdict.HELD), (21, Verdict.GREW)])
def test_counts_grow_when_their_most_does(of_the_last_third, verdict):
    counts = [90] * 40 + [19, 20] * 20 + [of_the_last_third] * 40
    assert peaks_of(AT_S, counts, DURATION_S).verdict is verdict


@pytest.mark.parametrize(("num_higher", "verdict"), [(1, Verdict.HELD), (2, Verdict.GREW)])
def test_what_was_seen_once_is_no_growth(num_higher, verdict):
    counts = [20] * 100 + [21] * num_higher + [20] * (20 - num_higher)
    assert peaks_of(AT_S, counts, DURATION_S).verdict is verdict


def test_a_few_windows_say_nothing():
    assert trend_of(AT_S[:9], [1.0] * 9, AT_S[8], TENTH).verdict is Verdict.TOO_SHORT
    assert peaks_of(AT_S[:9], [1] * 9, AT_S[8]).verdict is Verdict.TOO_SHORT


def window(at_s: float, mib: float) -> ProcessWindow:
    return ProcessWindow(at_s, 0, 0, round(mib * (1 << 20)), 0, 10, 3)


def test_a_leak_of_a_percent_a_minute_is_found_and_shown():
    windows = tuple(window(at_s, 200 + 2 * at_s / 60) for at_s in AT_S)
    memory, descriptors, threads = process_judgements(ProcessSeries("decode", windows), DURATION_S)
    assert memory.trend.verdict is Verdict.GREW
    assert memory.trend.per_hour == pytest.approx(120.0, rel=1e-3)
    assert descriptors.trend.verdict is threads.trend.verdict is Verdict.HELD


def test_requests_are_judged_by_when_they_were_due():
    ended = [Ended(at_s + 30 * part / 20, 50 + at_s / 60, 5.0, "") for at_s in AT_S for part in range(-5, 5)]
    windows = latency_windows([*ended, Ended(1.0, None, None, "full")], 30.0, Slo(80.0, 10.0))
    assert len(windows) == len(AT_S)
    assert (windows[0].num_requests, windows[0].num_failed, windows[0].num_met) == (11, 1, 10)
    assert windows[-1].num_met == 0
    ttft, _, tpot, _ = request_judgements(windows, DURATION_S)
    assert (ttft.measure, ttft.trend.verdict) == ("TTFT p50", Verdict.GREW)
    assert (tpot.measure, tpot.trend.verdict) == ("TPOT p50", Verdict.HELD)


def test_a_watch_keeps_whole_windows_of_this_process():
    watch = Watch(10.0)
    watch.add({"me": os.getpid()})
    watch.look(1.0)
    with Path(os.devnull).open(), Path(os.devnull).open():
        for at_s in (11.0, 16.0, 21.0):
            watch.look(at_s)
    (series,) = watch.series()
    first, second = series.windows
    assert (first.at_s, second.at_s) == (5.0, 15.0)
    assert 0 < first.anonymous_bytes <= first.pss_bytes
    assert second.num_descriptors == first.num_descriptors + 2
    assert first.num_threads >= 1


def test_a_process_that_ends_ends_the_run():
    watch = Watch(10.0)
    watch.add({"decode": 2**22 + 1})
    with pytest.raises(NotReadyError, match="decode has ended, 3 s into"):
        watch.look(3.0)


def test_a_lasting_load_tells_of_its_start_of_time_and_of_each_request(tmp_path):
    requests = tuple(PlannedRequest(number, 0.4 * number, (Span("a", 4),), 2) for number in range(2))
    endpoint = EndpointSpec(Protocols.TANDEM, f"unix:{tmp_path}/nobody.sock")
    job = LoadJob(endpoint, Workload("w", requests), TokenRange(10, 20), (), drain_s=30.0, salt="s")
    started, *events = lasting_load(job, 0.1, MonotonicClock())
    assert isinstance(started, Started)
    assert started.pid != os.getpid()
    ended = [event for event in events if isinstance(event, Ended)]
    assert sorted(event.due_s for event in ended) == [0.0, 0.4]
    assert all(event.ttft_ms is None and event.error.startswith("NotReadyError") for event in ended)
    ticks = [event.at_s for event in events if isinstance(event, Tick)]
    assert ticks == sorted(ticks)
    assert len(ticks) >= 4


def test_a_lasting_load_whose_warm_up_fails_is_over(tmp_path):
    request = PlannedRequest(0, 0.0, (Span("a", 4),), 2)
    endpoint = EndpointSpec(Protocols.TANDEM, f"unix:{tmp_path}/nobody.sock")
    job = LoadJob(endpoint, Workload("w", (request,)), TokenRange(10, 20), (request,), drain_s=30.0, salt="s")
    with pytest.raises(NotReadyError, match="nobody"):
        list(lasting_load(job, 0.1, MonotonicClock()))


def test_prompts_on_demand_are_the_same_prompts():
    requests = [PlannedRequest(number, 0.0, (Span(f"s{number}", 5),), 1) for number in range(3)]
    tokens = TokenRange(5, 900)
    assert dict(PromptsOnDemand(requests, tokens, "x")) == all_prompts(requests, tokens, "x")

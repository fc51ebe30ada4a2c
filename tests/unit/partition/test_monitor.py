import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.partition.monitor import HISTORY_WINDOWS, SAMPLES_PER_SHARE, Monitor, WindowLimits
from tandem.partition.observations import MEMORY_WINDOWS
from tandem.partition.samples import request_sample, step_sample
from tandem.partition.slo import Slo, SloPolicy
from tandem.types import Phase, RequestClass, RequestObservation, Split, StepStatistics
from tests.support.observed import Traffic, decode_step, feed, prefill_step, request

SPLIT = Split(50, 50)


def monitor(window_s=10.0, num_requests=400) -> Monitor:
    return Monitor(WindowLimits(window_s, num_requests), SPLIT)


def test_samples_leave_the_window_with_time():
    watching = monitor()
    for second in range(20):
        watching.add_step(Phase.DECODE, decode_step(Traffic()), float(second))
        watching.add_request(request(Traffic()), float(second))
    seen = watching.observations(20.0)
    decode = seen.samples(Phase.DECODE)
    assert [step.at_s for step in decode.window] == [float(second) for second in range(11, 20)]
    assert decode.remembered == decode.since(-1.0)
    assert len(decode.since(14.0)) == len(seen.served_since(14.0)) == 5
    assert len(seen.served) == 20
    assert len(watching.observations(10.0 * MEMORY_WINDOWS + 5.0).served) == 14
    assert not watching.observations(200.0).served


def test_each_step_has_the_share_it_ran_under_and_shares_are_remembered():
    watching = monitor()
    watching.add_step(Phase.PREFILL, prefill_step(Traffic()), 1.0)
    watching.switched(Split(80, 20), 2.0)
    for number in range(100):
        watching.add_step(Phase.PREFILL, prefill_step(Traffic()), 3.0 + number)
    seen = watching.observations(110.0)
    counts = {percent: len(steps) for percent, steps in seen.samples(Phase.PREFILL).by_percent.items()}
    assert counts == {50: 1, 80: SAMPLES_PER_SHARE}
    assert seen.switch_ages_s == (108.0,)


def test_a_step_knows_what_was_beside_it_once_the_other_phase_has_reported():
    watching = monitor()
    long = replace(prefill_step(Traffic()), duration_ms=100.0)
    short = replace(decode_step(Traffic()), duration_ms=10.0)
    for hundredth in range(95, 100):  # decode from 0.94 to 0.99, prefill from 0.9 to 1.0
        watching.add_step(Phase.DECODE, short, hundredth / 100)
    watching.add_step(Phase.PREFILL, long, 1.1, age_s=0.1)
    watching.add_step(Phase.DECODE, short, 1.1)  # alone
    watching.add_step(Phase.PREFILL, long, 1.5)
    seen = watching.observations(3.0)
    assert [step.beside for step in seen.samples(Phase.PREFILL).by_percent[50]] == pytest.approx([0.5, 0.0])
    assert [step.beside for step in seen.samples(Phase.DECODE).by_percent[50]] == pytest.approx([1, 1, 1, 1, 1, 0])


def test_steps_of_a_phase_end_one_after_another_whatever_is_told():
    watching = monitor()
    for age_s in (0.0, 0.9, 0.1):
        watching.add_step(Phase.DECODE, decode_step(Traffic()), 2.0, age_s)
    ended_s = [step.at_s for step in watching.observations(3.0).samples(Phase.DECODE).window]
    assert ended_s == sorted(ended_s)


def test_in_a_closed_window_latencies_of_a_class_count_in_proportion_to_its_slo():
    slos = SloPolicy(Slo(500.0, 50.0), {RequestClass.BATCH: Slo(5000.0, 100.0)})
    watching = Monitor(WindowLimits(10.0, 400), SPLIT, slos)
    watching.observations(0.0)
    batch = replace(request(Traffic(ttft_ms=4000.0, tpot_ms=90.0)), request_class=RequestClass.BATCH)
    watching.add_request(batch, 1.0)
    (closed,) = watching.observations(10.0).history
    assert (closed.ttft_p90_ms, closed.tpot_p90_ms) == (400.0, 45.0)


def test_windows_close_by_time_and_by_count():
    watching = monitor(num_requests=5)
    watching.add_request(request(Traffic()), 0.5)
    assert not watching.observations(9.0).history
    assert watching.observations(10.5).history == ()  # begun with the first report, which is not after its beginning
    for second in range(11, 16):
        watching.add_request(request(Traffic(ttft_ms=100.0 * second)), float(second))
    (closed,) = watching.observations(16.0).history
    assert (closed.num_requests, closed.closed_s, closed.is_mixed) == (5, 16.0, False)
    assert closed.ttft_p90_ms == pytest.approx(1460.0)
    assert closed.requests_per_s == pytest.approx(5 / 5.5)


def test_a_window_in_which_the_split_changed_says_so():
    watching = monitor()
    feed(watching, Traffic(), 0.0)
    watching.observations(10.5)
    feed(watching, Traffic(), 11.0)
    watching.switched(Split(80, 20), 20.0)
    (_, mixed) = watching.observations(21.0).history
    assert (mixed.is_mixed, mixed.split) == (True, Split(80, 20))


def test_history_is_bounded_and_silence_closes_no_window():
    watching = monitor()
    for window in range(HISTORY_WINDOWS + 10):
        watching.add_request(request(Traffic()), window * 10.0 + 5.0)
        watching.observations(window * 10.0 + 10.0)
    assert len(watching.observations(1e4).history) == HISTORY_WINDOWS
    assert len(watching.observations(2e4).history) == HISTORY_WINDOWS


def test_another_process_of_a_phase_starts_anew_but_speeds_stay_known():
    watching = monitor()
    watching.add_step(Phase.DECODE, decode_step(Traffic()), 1.0)
    watching.observations(5.0)
    watching.phase(Phase.DECODE).restarted()
    samples = watching.observations(6.0).samples(Phase.DECODE)
    assert not samples.window
    assert samples.by_percent[50]


def test_a_clock_that_goes_back_or_is_no_number_stands():
    watching = monitor()
    watching.add_request(request(Traffic()), 100.0)
    watching.add_request(request(Traffic()), 3.0)
    watching.add_request(request(Traffic()), math.nan)
    assert {sample.at_s for sample in watching.observations(50.0).served} == {100.0}


@pytest.mark.parametrize(
    "step",
    [
        StepStatistics(math.nan, 1, 1, 1, 0, 0),
        StepStatistics(-5.0, 1, 1, 1, 0, 0),
        StepStatistics(0.0, 1, 1, 1, 0, 0),
        StepStatistics(math.inf, 1, 1, 1, 0, 0),
        StepStatistics(5.0, 0, 1, 1, 0, 0),
        StepStatistics(5.0, 1, -7, 1, 0, 0),
        StepStatistics(5.0, 1, 1, 2**60, 0, 0),
    ],
)
def test_steps_that_cannot_be_true_are_no_samples(step):
    assert step_sample(step, 1.0, 50) is None


def test_a_latency_that_cannot_be_true_is_none_and_leaves_the_rest():
    told = RequestObservation("r", -1.0, 5.0, 5.0, 30.0, 10, 5, 4, True, 2**63, -3)
    sample = request_sample(told, 1.0, SPLIT)
    assert math.isnan(sample.ttft_ms)
    assert (sample.tpot_ms, sample.num_prompt_tokens, sample.num_waiting) == (30.0, 6, 0)


numbers = st.one_of(st.floats(), st.floats(0, 1e4))
counts = st.integers(-(2**40), 2**40)
lies = st.builds(
    RequestObservation, st.just("r"), numbers, numbers, numbers, numbers, counts, counts, counts, st.booleans(), counts,
    counts,
)  # fmt: skip
false_steps = st.builds(StepStatistics, numbers, counts, counts, counts, counts, counts, counts)


@given(st.lists(st.tuples(st.floats(), st.one_of(lies, false_steps)), max_size=30))
def test_nothing_that_is_told_breaks_the_monitor(told):
    watching = monitor()
    for at_s, each in told:
        if isinstance(each, RequestObservation):
            watching.add_request(each, at_s)
        else:
            watching.add_step(Phase.PREFILL, each, at_s)
    seen = watching.observations(1e6)
    assert all(window.requests_per_s >= 0 for window in seen.history)
    assert 0 <= seen.samples(Phase.PREFILL).observed_s <= seen.window_s * MEMORY_WINDOWS


def test_a_switch_counts_from_when_the_last_phase_has_its_share():
    watching = monitor()
    watching.decided(Split(80, 20))
    assert watching.observations(1.0).switch_ages_s == (0.0,), "under way"
    watching.applied(Phase.PREFILL, Split(80, 20), 2.0)
    for at_s, phase, step in ((3.0, Phase.PREFILL, prefill_step), (3.0, Phase.DECODE, decode_step)):
        watching.add_step(phase, step(Traffic()), at_s)
    watching.applied(Phase.DECODE, Split(80, 20), 5.0)
    watching.add_step(Phase.DECODE, decode_step(Traffic()), 6.0)
    seen = watching.observations(9.0)
    assert seen.switch_ages_s == (4.0,)
    assert [step.percent for step in seen.samples(Phase.PREFILL).window] == [80]
    assert [step.percent for step in seen.samples(Phase.DECODE).window] == [50, 20]


def test_a_decision_that_is_taken_back_before_it_is_in_force_is_no_switch():
    watching = monitor()
    watching.decided(Split(80, 20))
    watching.applied(Phase.PREFILL, Split(80, 20), 1.0)
    watching.decided(SPLIT)
    watching.applied(Phase.PREFILL, SPLIT, 2.0)
    assert watching.observations(3.0).switch_ages_s == ()


def test_a_window_in_which_a_switch_was_under_way_is_mixed():
    watching = monitor()
    watching.observations(0.0)
    watching.add_request(request(Traffic()), 5.0)
    watching.decided(Split(80, 20))
    (closed,) = watching.observations(11.0).history
    assert (closed.is_mixed, closed.split) == (True, SPLIT)

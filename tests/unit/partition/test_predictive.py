import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.device.partition_backends import PARTITION_BACKENDS
from tandem.partition.decoding import Decoding
from tandem.partition.forecast import Models, forecast
from tandem.partition.load import RequestShape, load_of
from tandem.partition.monitor import Monitor, WindowLimits
from tandem.partition.observations import Observations, PhaseSamples
from tandem.partition.predictive import PredictivePlanner
from tandem.partition.samples import StepSample
from tandem.partition.slo import Slo, SloPolicy
from tandem.partition.step_times import StepContent, StepLaw, StepModel, calibrated
from tandem.partition.stretch import expected_loads, steady_stretch_s
from tandem.partition.traits import CPU_LAWS, TRAITS, traits_of
from tandem.types import Phase, RequestClass, Split
from tests.support.observed import SPLITS, WINDOW_S, Traffic, decode_step, feed, observed, prefill_step, request

SLOS = SloPolicy(Slo(ttft_ms=600.0, tpot_ms=100.0))
PLANNER = PredictivePlanner(SLOS, CPU_LAWS, margin=0.1)
MIDDLE = SPLITS[2]


def plan(traffic: Traffic, current: Split, planner: PredictivePlanner = PLANNER):
    return planner.plan(observed(traffic, current), current)


def test_without_offers_nothing_moves():
    assert PLANNER.plan(observed(Traffic(), MIDDLE, splits=()), MIDDLE).split == MIDDLE


def test_under_a_light_load_decode_has_the_least_that_keeps_its_slo_once_things_are_calm():
    made = plan(Traffic(), MIDDLE)
    assert made.split == SPLITS[4]
    assert made.predicted.attainment > 0.9
    assert made.admission is None
    seen = observed(Traffic(), MIDDLE)
    assert PLANNER.plan(replace(seen, switch_ages_s=(99.0,)), MIDDLE).split == MIDDLE
    close = replace(PLANNER, slos=SloPolicy(replace(SLOS.deployment, tpot_ms=30.0)), margin=0.4)
    assert plan(Traffic(), SPLITS[3], close).split == SPLITS[3], "a margin alone is worth no switch to what gives less"
    strict = replace(PLANNER, slos=SloPolicy(replace(SLOS.deployment, tpot_ms=26.0)))
    assert plan(Traffic(), MIDDLE, strict).split == MIDDLE, "decode is at 20 ms, and would be at 50"


def test_prompts_that_queue_get_more():
    heavy = Traffic(prefill_steps=24, prefill_ms=400.0, prompt_tokens=512, backlog_tokens=4000, decode_steps=60)
    assert plan(heavy, MIDDLE).split.prefill_percent > 50


def test_answers_that_crawl_get_more():
    heavy = Traffic(prefill_steps=4, decode_steps=60, batch=30, decode_ms=160.0, output_tokens=400, tpot_ms=160.0)
    assert plan(heavy, SPLITS[4]).split.decode_percent > 20


def test_a_phase_that_is_alone_gets_all_there_is():
    assert plan(Traffic(prefill_steps=0), MIDDLE).split == MIDDLE  # nothing is known of a phase that never stepped
    watching = Monitor(WindowLimits(WINDOW_S, 400), MIDDLE)
    feed(watching, Traffic(), 0.0)
    feed(watching, Traffic(prefill_steps=0), 12.0)
    assert PLANNER.plan(watching.observations(22.0, SPLITS), MIDDLE).split == SPLITS[0]


def test_a_split_that_is_no_longer_offered_is_left():
    assert plan(Traffic(), Split(90, 10)).split in SPLITS


def test_when_nothing_helps_admission_is_advised():
    flood = Traffic(
        prefill_steps=24, prefill_ms=400.0, prompt_tokens=512, backlog_tokens=200_000, batch=40, decode_ms=300.0
    )
    advice = plan(flood, MIDDLE).admission
    assert advice is not None
    assert 0 <= advice.admit_share < 1


def test_classes_have_slos_of_their_own():
    lenient = SloPolicy(SLOS.deployment, {RequestClass.INTERACTIVE: Slo(1e6, 1e6)})
    heavy = Traffic(prefill_steps=24, prefill_ms=400.0, prompt_tokens=512, backlog_tokens=4000)
    current = SPLITS[4]
    assert plan(heavy, current).admission is not None
    assert plan(heavy, current, replace(PLANNER, slos=lenient)).admission is None


def test_just_after_a_switch_more_is_asked_of_the_next():
    heavy = Traffic(prefill_steps=20, prefill_ms=250.0, prompt_tokens=512)
    seen = observed(heavy, MIDDLE)
    calm = PLANNER.plan(seen, MIDDLE)
    assert calm.split.prefill_percent > 50
    assert PLANNER.plan(replace(seen, switch_ages_s=(1.0,) * 9), MIDDLE).split == MIDDLE
    assert PLANNER.plan(replace(seen, switch_ages_s=(200.0,) * 9), MIDDLE).split == calm.split


def test_the_law_is_corrected_by_what_is_seen_and_outliers_do_not_count():
    law = StepLaw(base_ms=10.0, row_ms=1.0, key_ms=0.0, pair_ms=0.0, parallel=0.5)
    watching = Monitor(WindowLimits(WINDOW_S, 400), MIDDLE)
    for number in range(20):
        step = prefill_step(Traffic(prompt_tokens=40))
        true_ms = 3.0 * law.ms(50, 40, 40)
        watching.add_step(Phase.PREFILL, replace(step, duration_ms=1e6 if number % 7 == 0 else true_ms), 1.0)
    model = calibrated(law, watching.observations(2.0).samples(Phase.PREFILL))
    assert model.ms(50, StepContent(40, 40)) == pytest.approx(3.0 * 75.0)
    assert model.ms(100, StepContent(40, 40)) == pytest.approx(3.0 * 50.0)


def test_a_share_that_has_seen_other_steps_is_not_taken_for_a_slower_one():
    """The law is three times too fast for short steps; one share has seen long ones, another short ones."""
    law = StepLaw(base_ms=0.0, row_ms=1.0, key_ms=0.0, pair_ms=0.0, parallel=1.0)
    watching = Monitor(WindowLimits(WINDOW_S, 400), MIDDLE)
    for split, tokens, ms in ((MIDDLE, 512, 1024.0), (SPLITS[4], 8, 30.0)):
        watching.switched(split, 1.0)
        for _ in range(8):
            step = replace(prefill_step(Traffic(prompt_tokens=tokens)), duration_ms=ms)
            watching.add_step(Phase.PREFILL, step, 1.0)
    model = calibrated(law, watching.observations(3.0).samples(Phase.PREFILL))
    assert model.ms(80, StepContent(512, 512)) == pytest.approx(640.0)
    assert model.ms(50, StepContent(8, 8)) == pytest.approx(48.0)


def test_a_share_may_slow_down_large_steps_more_than_small_ones():
    law = StepLaw(base_ms=10.0, row_ms=0.0, key_ms=0.0, pair_ms=0.0, parallel=0.0)
    seen = {20: {8: 10.0, 128: 40.0}, 80: {8: 10.0, 128: 10.0}}
    samples = PhaseSamples(
        by_percent={
            percent: tuple(
                StepSample(1.0, percent, ms, rows, rows, rows, 0, 0) for rows, ms in steps.items() for _ in range(4)
            )
            for percent, steps in seen.items()
        }
    )
    model = calibrated(law, samples)
    for percent, steps in seen.items():
        for rows, ms in steps.items():
            assert model.ms(percent, StepContent(rows, rows, rows)) == pytest.approx(ms)


@pytest.mark.parametrize("beside", [0.0, 0.5, 1.0])
def test_where_idle_shares_are_lent_a_step_alone_says_how_fast_the_whole_device_is(beside):
    """The law is three times too slow for the whole device, and right for the half."""
    law = StepLaw(base_ms=0.0, row_ms=1.0, key_ms=0.0, pair_ms=0.0, parallel=1.0)
    alone_ms, shared_ms = 40.0 / 3, 80.0
    samples = PhaseSamples(
        by_percent={
            50: tuple(
                StepSample(1.0, 50, ms, 1, 40, 40, 0, 0, beside=part)
                for ms, part in ((alone_ms, 0.0), (shared_ms, 1.0))
                for _ in range(4)
            )
        }
    )
    model = calibrated(law, samples, lends=True)
    expected = 1.0 / (beside / shared_ms + (1.0 - beside) / alone_ms)
    assert model.ms(50, StepContent(40, 40), beside) == pytest.approx(expected)
    assert calibrated(law, samples).ms(50, StepContent(40, 40), beside) == pytest.approx((alone_ms + shared_ms) / 2)


def test_a_share_that_is_kept_by_resting_is_as_slow_as_its_steps_are_together():
    """Three of four steps run undisturbed, the fourth waits for the other phase's time."""
    law = StepLaw(base_ms=10.0, row_ms=0.0, key_ms=0.0, pair_ms=0.0, parallel=0.0)
    durations_ms = (10.0, 10.0, 10.0, 70.0) * 4
    steps = tuple(StepSample(1.0, 20, ms, 1, 1, 8, 0, 0) for ms in durations_ms)
    model = calibrated(law, PhaseSamples(by_percent={20: steps}), lends=True)
    assert model.ms(20, StepContent(1, 8)) == pytest.approx(25.0)


def test_what_few_steps_say_of_a_share_counts_as_far_as_it_is_no_chance():
    law = StepLaw(base_ms=10.0, row_ms=0.0, key_ms=0.0, pair_ms=0.0, parallel=0.0)
    at_half = [StepSample(1.0, 50, 10.0, 1, 1, 8, 0, 0)] * 96

    def factor(durations_ms: Sequence[float]) -> float:
        resting = [StepSample(1.0, 20, ms, 1, 1, 8, 0, 0) for ms in durations_ms]
        model = calibrated(law, PhaseSamples(by_percent={50: tuple(at_half), 20: tuple(resting)}))
        return model.ms(20, StepContent(1, 8)) / model.ms(50, StepContent(1, 8))

    assert 1.0 < factor((4.0, 4.0, 4.0, 44.0)) < 1.2, "1.4 in the mean"
    assert factor((4.0, 4.0, 4.0, 44.0) * 32) == pytest.approx(1.4, rel=0.1)
    assert factor((14.0,) * 4) == pytest.approx(1.4), "they agree"


def test_forecasts_order_splits_as_shares_do():
    seen = observed(Traffic(), MIDDLE)
    load = load_of(seen, WINDOW_S)
    models = Models(
        calibrated(CPU_LAWS.prefill, seen.samples(Phase.PREFILL)),
        calibrated(CPU_LAWS.decode, seen.samples(Phase.DECODE)),
    )
    made = [forecast(split, load, models, WINDOW_S) for split in SPLITS]
    assert [each.ttft_p90_ms() for each in made] == sorted((each.ttft_p90_ms() for each in made), reverse=True)
    least, most = (Decoding(SPLITS[place], load, models.decode).tpot_ms(4, 1.0) for place in (0, 4))
    assert least < most


def test_the_arriving_rate_is_what_was_computed_and_what_is_left():
    load = load_of(observed(Traffic(prefill_steps=20, prompt_tokens=256), MIDDLE), WINDOW_S)
    assert load.requests_per_s == pytest.approx(2.0, rel=0.1)
    assert load.mean_prompt_tokens == pytest.approx(256, rel=0.1)
    assert load.decode.num_sequences == 4


@pytest.mark.parametrize(("traffic", "num_windows"), [(replace(Traffic(), decode_steps=900), 8), (Traffic(), 30)])
def test_who_comes_is_counted_over_the_time_that_is_remembered(traffic, num_windows):
    """Of decode's steps, or of the requests, fewer are kept than of eight windows."""
    watching = Monitor(WindowLimits(WINDOW_S, 100), MIDDLE)
    for number in range(num_windows):
        feed(watching, traffic, number * WINDOW_S)
    seen = watching.observations(num_windows * WINDOW_S, SPLITS)
    assert load_of(seen, 8 * WINDOW_S).requests_per_s == pytest.approx(2.0, rel=0.1)


def test_the_same_past_seen_a_request_later_is_nearly_the_same_load():
    """One prompt of ten is long: whoever takes every so many-th has all of the long ones, or none."""
    watching = Monitor(WindowLimits(WINDOW_S, 400), MIDDLE)
    feed(watching, Traffic(), 0.0)
    longest = []
    for number in range(270):
        tokens = 1000 if number % 10 == 0 else 100
        watching.add_request(request(replace(Traffic(), prompt_tokens=tokens)), WINDOW_S)
        if number > 250:
            shapes = load_of(watching.observations(WINDOW_S), WINDOW_S).shapes
            lengths = sorted(shape.num_prompt_tokens for shape in shapes)
            longest.append(sum(length > 5 * lengths[0] for length in lengths) / len(lengths))
    assert min(longest) > 0.05
    assert max(longest) < 0.16


def test_a_backlog_counts_for_as_long_as_it_lasts():
    """A second's work at 200 ms a prompt, within ten seconds: who comes in the other nine finds nothing of it."""
    models = Models(StepModel(StepLaw(0.0, 1.0, 0.0, 0.0, 0.0), {}, {}), StepModel(StepLaw(10.0, 0, 0, 0, 0.0), {}, {}))
    seen = load_of(observed(Traffic(prompt_tokens=200), MIDDLE), WINDOW_S)
    load = replace(seen, requests_per_s=0.5, prefill=replace(seen.prefill, backlog_tokens=1000.0))
    within = SloPolicy(Slo(450.0, 1e6))
    late, none = (
        1.0 - forecast(MIDDLE, each, models, WINDOW_S).ttft_attainment(within)
        for each in (load, replace(load, prefill=replace(load.prefill, backlog_tokens=0.0)))
    )
    assert 0.02 < late - none < 0.13


def served_for(windows: Sequence[Traffic]) -> Observations:
    watching = Monitor(WindowLimits(WINDOW_S, 400), MIDDLE)
    for number, traffic in enumerate(windows):
        feed(watching, traffic, number * WINDOW_S)
    return watching.observations(len(windows) * WINDOW_S, SPLITS)


def test_a_steady_past_counts_whole_and_a_changed_one_does_not():
    assert steady_stretch_s(served_for([Traffic()] * 8)) == 8 * WINDOW_S
    longer_prompts = replace(Traffic(), prompt_tokens=1024)
    longer_answers = replace(Traffic(), output_tokens=200)
    for changed in (longer_prompts, longer_answers, replace(Traffic(), prefill_steps=100)):
        assert steady_stretch_s(served_for([Traffic()] * 7 + [changed])) == WINDOW_S


def test_after_a_change_what_comes_now_is_what_is_expected():
    changed = replace(Traffic(), prompt_tokens=1024, prefill_ms=300.0)
    load, more = expected_loads(served_for([Traffic()] * 7 + [changed]))
    assert load.mean_prompt_tokens == pytest.approx(1024, rel=0.2)
    assert more.requests_per_s > load.requests_per_s


def test_a_moments_batch_is_no_miss_and_a_lasting_one_is():
    """TPOT is a mean over a request: forty sequences that are gone in a moment do not make it, forty that stay do."""
    model = StepModel(StepLaw(10.0, 2.0, 0.0, 0.0, 0.5), {}, {})
    models = Models(calibrated(CPU_LAWS.prefill, PhaseSamples()), model)
    load = load_of(observed(replace(Traffic(), batch=40, output_tokens=100), MIDDLE), WINDOW_S)
    gone = replace(load, requests_per_s=0.2, work_per_request=100.0)
    stays = replace(load, requests_per_s=4.0, work_per_request=100.0)
    slos = SloPolicy(Slo(1e6, 100.0))
    assert forecast(MIDDLE, gone, models, WINDOW_S).tpot_attainment(slos) > 0.7
    assert forecast(MIDDLE, stays, models, WINDOW_S).tpot_attainment(slos) < 0.1


def test_a_batch_grows_to_what_comes_in_while_an_answer_takes_however_short_that_is():
    """Little's law, also where an answer is much shorter than a step of the forecast."""
    model = StepModel(StepLaw(20.0, 0.0, 0.0, 0.0, 0.0), {}, {})
    models = Models(calibrated(CPU_LAWS.prefill, PhaseSamples()), model)
    seen = load_of(observed(Traffic(), MIDDLE), WINDOW_S)
    load = replace(seen, requests_per_s=1.0, prefill=replace(seen.prefill, backlog_tokens=0.0))
    for num_tokens in (5.0, 200.0):
        made = forecast(MIDDLE, replace(load, work_per_request=num_tokens), models, 60.0)
        assert made.num_sequences[-1] == pytest.approx(num_tokens * 0.02, rel=0.05)


def test_a_split_in_which_decode_falls_behind_slowly_is_not_moved_to(monkeypatch):
    """With 20 % it could not keep up for long; a window's forecast does not show it."""
    laws = replace(CPU_LAWS, decode=StepLaw(2.0, 0.8, 0.0, 0.0, 1.0))
    traffic = Traffic(
        prefill_steps=20, prompt_tokens=128, prefill_ms=40.0, output_tokens=120, batch=10, decode_steps=240,
        decode_ms=20.0, tpot_ms=20.0,
    )  # fmt: skip
    assert plan(traffic, MIDDLE, replace(PLANNER, laws=laws)).split.decode_percent == 35
    monkeypatch.setattr("tandem.partition.predictive.LASTING_WINDOWS", 1.0)
    assert plan(traffic, MIDDLE, replace(PLANNER, laws=laws)).split.decode_percent == 20


def test_a_queue_of_unequal_prompts_is_waited_for_longer():
    load = load_of(observed(Traffic(), MIDDLE), WINDOW_S)
    models = Models(calibrated(CPU_LAWS.prefill, PhaseSamples()), calibrated(CPU_LAWS.decode, PhaseSamples()))
    equal = replace(load, shapes=(RequestShape(RequestClass.INTERACTIVE, 256, 20),) * 2)
    lengths = (12, 500)
    unequal = replace(load, shapes=tuple(RequestShape(RequestClass.INTERACTIVE, length, 20) for length in lengths))
    waits = [forecast(MIDDLE, each, models, WINDOW_S).mean_residual_s for each in (equal, unequal)]
    assert waits[1] > 1.5 * waits[0]


@pytest.mark.parametrize("name", [*PARTITION_BACKENDS, "never heard of"])
def test_every_backend_has_traits(name):
    assert (name in TRAITS) is (name in PARTITION_BACKENDS)
    assert traits_of(name).laws.decode.ms(50, 4, 1000, 4) > 0


@settings(max_examples=6, derandomize=True)  # what chance does now and then shall not fail a change
@given(st.integers(0, 10**6), st.sampled_from(SPLITS))
def test_noise_on_a_stationary_load_does_not_flap(seed, start):
    """Six windows, decisions every second: durations vary by a tenth, answers and prompts by a third."""
    noise = random.Random(seed)
    watching = Monitor(WindowLimits(WINDOW_S, 400), start)
    current, num_switches = start, 0
    for tick in range(60):
        for part in range(2):
            at_s = tick + part * 0.5
            tokens = noise.randint(170, 340)
            traffic = Traffic(prompt_tokens=tokens, prefill_ms=tokens * 0.3 * noise.uniform(0.9, 1.1))
            watching.add_step(Phase.PREFILL, prefill_step(traffic), at_s)
            watching.add_request(request(replace(traffic, output_tokens=noise.randint(14, 26))), at_s)
        for part in range(10):
            step = decode_step(Traffic(decode_ms=20.0 * noise.uniform(0.9, 1.1), batch=noise.randint(3, 5)))
            watching.add_step(Phase.DECODE, step, tick + part * 0.1)
        wanted = PLANNER.plan(watching.observations(tick + 1.0, SPLITS), current).split
        num_switches += wanted != current
        current = wanted
        watching.switched(current, tick + 1.0)
    assert num_switches <= 1


traffics = st.builds(
    Traffic,
    prefill_steps=st.integers(0, 12),
    prompt_tokens=st.integers(1, 10**7),
    prefill_ms=st.floats(),
    backlog_tokens=st.integers(-5, 10**9),
    decode_steps=st.integers(0, 12),
    batch=st.integers(-1, 5000),
    decode_ms=st.floats(),
    decode_waiting=st.integers(-5, 10**9),
    ttft_ms=st.floats(),
    tpot_ms=st.floats(),
    output_tokens=st.integers(-1, 10**7),
)


@given(traffics, st.sampled_from(SPLITS))
def test_whatever_is_told_the_plan_is_on_offer(traffic, current):
    made = plan(traffic, current)
    assert made.split in SPLITS
    assert made.reason
    assert made.predicted is None or 0 <= made.predicted.attainment <= 1

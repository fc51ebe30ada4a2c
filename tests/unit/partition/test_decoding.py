"""How fast answers come: how much they differ by what prefill does meanwhile."""

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pvariance

import pytest

from tandem.partition.decoding import Decoding, Prefill
from tandem.partition.forecast import Models, forecast, residual_s
from tandem.partition.load import Load, load_of
from tandem.partition.observations import PhaseSamples
from tandem.partition.slo import Slo, SloPolicy
from tandem.partition.step_times import StepLaw, StepModel, calibrated
from tandem.partition.traits import CPU_LAWS
from tests.support.observed import SPLITS, WINDOW_S, Traffic, observed

HALF, LEAST = SPLITS[2], SPLITS[4]
LENDING = StepModel(StepLaw(10.0, 0.0, 0.0, 0.0, 1.0), {}, {}, lends=True)  # 10 ms alone, 50 beside prefill


def load_with(requests_per_s: float, prompt_tokens: int, output_tokens: float) -> Load:
    seen = load_of(observed(Traffic(prompt_tokens=prompt_tokens), HALF), WINDOW_S)
    return replace(seen, requests_per_s=requests_per_s, work_per_request=output_tokens)


def busy_stretches(rate: float, services_s: Sequence[float], until_s: float) -> list[tuple[float, float]]:
    """From and to, of one that serves prompts one by one as they come: Poisson arrivals, any of the services."""
    noise, at_s, free_s = random.Random(5), 0.0, 0.0
    stretches: list[tuple[float, float]] = []
    while at_s < until_s:
        at_s += noise.expovariate(rate)
        begun_s, free_s = max(at_s, free_s), max(at_s, free_s) + noise.choice(services_s)
        if stretches and begun_s == stretches[-1][1]:
            begun_s = stretches.pop()[0]
        stretches.append((begun_s, free_s))
    return stretches


@pytest.mark.parametrize("answer_s", [0.05, 0.5, 5.0, 20.0])
def test_answers_differ_as_stretches_of_a_queue_that_comes_and_goes_do(answer_s):
    """Against chance itself: most prompts are short, one of ten is long, and what waits makes a busy time longer."""
    services_s, rate = (0.05,) * 9 + (0.65,), 4.0
    busy, until_s = rate * fmean(services_s), 20_000.0
    worked_s = [0.0] * int(until_s / answer_s)
    for begun_s, ended_s in busy_stretches(rate, services_s, until_s - 60.0):
        for number in range(int(begun_s / answer_s), int(ended_s / answer_s) + 1):
            worked_s[number] += min(ended_s, (number + 1) * answer_s) - max(begun_s, number * answer_s)
    seen = pvariance(each / answer_s for each in worked_s)
    assert fmean(worked_s) / answer_s == pytest.approx(busy, rel=0.05)
    expected = Prefill(busy, residual_s(services_s)).alike(answer_s) * busy * (1.0 - busy)
    assert seen == pytest.approx(expected, rel=0.3)


def test_all_answers_are_some_answers():
    load = load_with(2.0, 256, 20.0)
    for split in SPLITS:
        for busy in (0.0, 0.4, 1.0):
            parts = Decoding(split, load, LENDING).tpots(3.0, Prefill(busy, 0.2))
            assert sum(part.weight for part in parts) == pytest.approx(1.0)
            assert sum(part.met(1e6) for part in parts) == pytest.approx(1.0)


def test_short_answers_meet_their_slo_or_not_where_long_ones_all_do():
    """Prefill is busy for a third of the time; what is within the limit in the mean is not so for everybody."""
    models = Models(calibrated(CPU_LAWS.prefill, PhaseSamples(), lends=True), LENDING)
    slos = SloPolicy(Slo(1e6, 25.0))
    short, long = (forecast(LEAST, load_with(3.0, 256, tokens), models, WINDOW_S) for tokens in (4.0, 400.0))
    assert 0.2 < short.busy.prefill < 0.5
    assert short.tpot_attainment(slos) == pytest.approx(1.0 - short.busy.prefill, abs=0.1)
    assert long.tpot_attainment(slos) > 0.95
    assert short.tpot_p90_ms() > 1.5 * long.tpot_p90_ms()


def test_it_is_short_answers_that_miss_however_long_the_mean_is():
    load = load_with(3.0, 256, 100.0)
    models = Models(calibrated(CPU_LAWS.prefill, PhaseSamples(), lends=True), LENDING)
    slos = SloPolicy(Slo(1e6, 25.0))
    equal, unequal = (
        forecast(LEAST, replace(load, answers=answers), models, WINDOW_S).tpot_attainment(slos)
        for answers in ((1.0,) * 4, (0.04, 0.04, 0.04, 3.88))
    )
    assert unequal < equal - 0.1

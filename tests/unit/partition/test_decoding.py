"""How fast answers come: how much they differ by what prefill does meanwhile."""

import random
from dataclasses import replace
from statistics import fmean, pvariance

import pytest

from tandem.partition.decoding import Decoding, Prefill
from tandem.partition.forecast import Models, forecast
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


@pytest.mark.parametrize("answer_s", [0.05, 0.3, 2.0])
def test_answers_differ_as_stretches_of_a_phase_that_comes_and_goes_do(answer_s):
    """Against chance itself: prefill is idle for half a second and busy for a third, each an exponential time."""
    noise, service_s, rate = random.Random(5), 0.2, 2.0
    busy = rate * service_s
    times, is_on = [0.0], []
    while times[-1] < 4000.0:
        is_on.append(len(is_on) % 2 == 0)
        times.append(times[-1] + noise.expovariate((1.0 - busy) / service_s if is_on[-1] else rate))
    seen, place = [], 0
    for number in range(int(3900.0 / (answer_s * 2))):
        start_s = number * answer_s * 2
        while times[place + 1] <= start_s:
            place += 1
        worked_s, each = 0.0, place
        while times[each] < start_s + answer_s:
            overlap_s = min(times[each + 1], start_s + answer_s) - max(times[each], start_s)
            worked_s, each = worked_s + is_on[each] * overlap_s, each + 1
        seen.append(worked_s / answer_s)
    assert fmean(seen) == pytest.approx(busy, rel=0.1)
    expected = Prefill(busy, service_s).alike(answer_s) * busy * (1.0 - busy)
    assert pvariance(seen) == pytest.approx(expected, rel=0.15)


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

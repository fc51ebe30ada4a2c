"""`tandem bench validate`: what a prediction rests on, and how it is held against what was measured."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from click.testing import CliRunner

from bench.load.records import RequestRecord
from bench.simulate.loads import LoadSpec
from bench.simulate.systems import Delays, Several, cpu_system
from bench.validate.calibrate import (
    LONE_GAP_S,
    ProbesSeen,
    between,
    calibrated,
    calibration,
    probe_workloads,
    seen_probes,
)
from bench.validate.predict import LoadAsked, Twin, compared
from bench.validate.probes import LEAST_CONTEXT_TOKENS, lone_workload, seen_alone, seen_beside
from bench.validate.results import Pair
from tandem.cli.main import main
from tandem.errors import NotReadyError

LOAD = LoadAsked(LoadSpec("sharegpt", 20.0, seed=1, period_s=20.0, length_scale=0.25, context_tokens=2048), 1.5)
ALONE, BESIDE = Delays(1.0, 6.0, 3.0), Delays(2.0, 12.0, 5.0, taken_ms=1.0)
SEVERAL = Several(4, 2.5, Delays(4.0, 18.0, 9.0, taken_ms=2.5))
LONE_FACTOR = 1.05


def twin_of(alone: Delays, beside: Delays | None = None, several: Several | None = None, factor: float = 1.0) -> Twin:
    system = cpu_system()
    contention = replace(system.contention, noise=0.0, lone_prefill_factor=factor)
    limits = replace(
        system.limits,
        between_steps_ms=alone.between_steps_ms,
        handover_ms=alone.handover_ms,
        join_ms=alone.join_ms,
        beside=beside,
        several=several,
    )
    return Twin(replace(system, contention=contention, limits=limits), "static:50,50", seed=1, drain_s=30.0)


TRUE = twin_of(ALONE, BESIDE, SEVERAL, LONE_FACTOR)


def lone_of(twin: Twin) -> Sequence[RequestRecord]:
    requests = lone_workload().requests
    return twin.records([replace(each, at_s=LONE_GAP_S * place) for place, each in enumerate(requests)])


@pytest.fixture(scope="module")
def seen() -> ProbesSeen:
    _, one, several = probe_workloads(TRUE)
    return seen_probes([lone_of(TRUE), TRUE.records(one.requests), TRUE.records(several.requests)])


@pytest.fixture(scope="module")
def found(seen) -> Twin:
    return calibrated(twin_of(Delays(0.5, 0.5, 0.5)), seen)


def test_delays_are_found_again_alone(found):
    limits = found.system.limits
    assert found.system.contention.lone_prefill_factor == pytest.approx(LONE_FACTOR, rel=0.01)
    assert limits.between_steps_ms == pytest.approx(ALONE.between_steps_ms, abs=0.1)
    assert limits.handover_ms == pytest.approx(ALONE.handover_ms, abs=0.3)
    assert limits.join_ms == pytest.approx(ALONE.join_ms, abs=0.3)
    assert limits.several.between_steps_ms == pytest.approx(SEVERAL.between_steps_ms, abs=0.2)


@pytest.mark.parametrize(("true", "found_delays"), [(BESIDE, "beside"), (SEVERAL.beside, "several")])
def test_delays_are_found_again_beside_the_other_phase(found, true, found_delays):
    """Joins wait for a step's end as well, and so are found less well."""
    limits = found.system.limits
    delays = limits.beside if found_delays == "beside" else limits.several.beside
    assert delays.between_steps_ms == pytest.approx(true.between_steps_ms, rel=0.1)
    assert delays.handover_ms == pytest.approx(true.handover_ms, rel=0.15)
    assert delays.taken_ms == pytest.approx(true.taken_ms, rel=0.1)
    assert delays.join_ms == pytest.approx(true.join_ms, rel=0.3)


def test_a_calibrated_twin_shows_what_calibrated_it_and_predicts_what_did_not(found, seen):
    rests_on = calibration(found, seen)
    assert [probe.measured for probe in rests_on.probes] == [seen.lone, seen.one, seen.several]
    for probe in rests_on.probes:
        assert probe.predicted.gap_ms == pytest.approx(probe.measured.gap_ms, rel=0.01)
        assert probe.predicted.beside_gap_ms == pytest.approx(probe.measured.beside_gap_ms, rel=0.02)
        assert probe.predicted.long_ttft_ms == pytest.approx(probe.measured.long_ttft_ms, rel=0.02)
    load = compared(found, LOAD, TRUE.records(LOAD.requests), rests_on)
    assert load.calibration == rests_on
    assert load.ttft_p90_ms.ratio == pytest.approx(1.0, abs=0.05)
    assert load.tpot_p90_ms.ratio == pytest.approx(1.0, abs=0.03)
    assert load.ttft_each < 1.05
    assert load.tpot_each < 1.05


def test_gaps_are_told_apart_by_what_is_beside_them():
    """Of the answer below, gaps of 10 ms, of 20 beside a long prompt, of 90 beside a short one and where it joins."""
    times_s, at_s = [0.1], 0.1
    for gap_ms in (90, 10, 10, 20, 20, 20, 10, 90, 10):
        at_s += gap_ms * 1e-3
        times_s.append(at_s)
    answer = RequestRecord(0, 0.0, 0.0, tuple(times_s), at_s, 16, 160, None, "")
    long = RequestRecord(1, 0.209, 0.209, (0.271, 0.275), 0.275, 256, 2, None, "")
    short = RequestRecord(2, 0.281, 0.281, (0.300, 0.310), 0.310, 32, 2, None, "")
    seen = seen_beside([answer, long, short])
    assert seen.beside_gap_ms == pytest.approx(20.0)
    assert seen.gap_ms == pytest.approx(10.0)
    assert (seen.long_ttft_ms, seen.short_ttft_ms) == (pytest.approx(62.0), pytest.approx(19.0))
    assert seen.first_gap_ms == pytest.approx(7.0)


def test_what_more_sequences_cost_lies_on_a_line():
    limits = replace(TRUE.system.limits, several=replace(SEVERAL, between_steps_ms=0.5))
    assert [limits.delays(True, count).taken_ms for count in (1, 2, 4, 7)] == pytest.approx([1.0, 1.5, 2.5, 4.0])
    assert limits.delays(True, 4) == SEVERAL.beside
    assert limits.delays(False, 1) == ALONE
    assert limits.delays(False, 4) == replace(ALONE, between_steps_ms=0.5)
    quicker = replace(limits, several=replace(SEVERAL, beside=replace(BESIDE, handover_ms=3.0)))
    assert quicker.delays(True, 7).handover_ms == 0.0


def test_what_services_take_while_both_phases_compute_is_taken_from_prefill():
    """A prompt beside one answer is later by what each of the answer's steps took meanwhile."""
    _, one, _ = probe_workloads(TRUE)
    without, with_it = (
        seen_beside(twin_of(ALONE, replace(BESIDE, taken_ms=taken_ms)).records(one.requests)) for taken_ms in (0.0, 2.0)
    )
    num_steps = with_it.rows_ms / with_it.beside_gap_ms
    assert with_it.rows_ms - without.rows_ms == pytest.approx(2.0 * num_steps, rel=0.2)
    assert with_it.beside_gap_ms == pytest.approx(without.beside_gap_ms, rel=0.03)
    assert with_it.gap_ms == pytest.approx(without.gap_ms, rel=0.01)


def test_a_load_is_predicted_by_what_was_seen_before_and_after_it(seen):
    later = replace(seen, one=replace(seen.one, gap_ms=seen.one.gap_ms + 4.0))
    middle = between(seen, later)
    assert middle.one.gap_ms == pytest.approx(seen.one.gap_ms + 2.0)
    assert (middle.lone, middle.several) == (seen.lone, seen.several)


def test_a_machine_that_is_faster_than_when_its_steps_were_measured_is_found_too():
    quick = twin_of(replace(ALONE, between_steps_ms=-2.0), replace(BESIDE, between_steps_ms=-2.0, taken_ms=-1.0))
    _, one, several = probe_workloads(quick)
    real = seen_probes([lone_of(quick), quick.records(one.requests), quick.records(several.requests)])
    slow = seen_beside(twin_of(ALONE, BESIDE).records(one.requests))
    assert real.one.gap_ms == pytest.approx(slow.gap_ms - 3.0, abs=0.2)
    limits = calibrated(twin_of(ALONE), real).system.limits
    assert limits.between_steps_ms == pytest.approx(-2.0, abs=0.1)
    assert limits.beside.between_steps_ms == pytest.approx(-2.0, abs=0.3)
    assert limits.beside.taken_ms == pytest.approx(-1.0, abs=0.3)


def test_too_few_answers_are_said_to_be_too_few():
    with pytest.raises(NotReadyError, match="calibrate"):
        seen_alone([])
    _, one, _ = probe_workloads(TRUE)
    answers = [each for each in TRUE.records(one.requests) if each.num_expected_tokens > 2]
    with pytest.raises(NotReadyError, match="calibrate"):
        seen_beside(answers)


def test_probes_fit_into_the_least_context_and_come_in_order():
    for workload in probe_workloads(TRUE):
        assert max(each.num_new_tokens + each.max_tokens for each in workload.requests) <= LEAST_CONTEXT_TOKENS
        assert all(first.at_s <= second.at_s for first, second in pairwise(workload.requests))


def test_the_twin_sees_the_same_requests_and_is_compared_by_percentiles_and_one_by_one():
    true = twin_of(ALONE)
    measured = true.records(LOAD.requests)
    same = compared(true, LOAD, measured)
    assert (same.ttft_p90_ms.ratio, same.tpot_p90_ms.ratio) == (1.0, 1.0)
    assert (same.ttft_each, same.tpot_each) == (1.0, 1.0)
    assert same.measured.num_requests == len(same.requests) == len(LOAD.requests)
    slower = compared(twin_of(replace(ALONE, between_steps_ms=22.0)), LOAD, measured)
    assert slower.tpot_p90_ms.ratio > 1.5
    assert slower.tpot_each > 1.5
    failed = [replace(measured[0], error="gone"), *measured[1:]]
    assert [each.number for each in compared(true, LOAD, failed).requests] == [each.number for each in measured[1:]]
    assert Pair(0.0, 5.0).ratio == 0.0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["semi-pd"], "none of"),
        (["--load", "sharegpt"], "NAME:RATE"),
        (["--load", "nonsense:2"], "NAME:RATE"),
        (["--load", "sharegpt:0.1", "--seconds", "1"], "needed"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_anything_starts(arguments, complaint, tiny_model_dir):
    outcome = CliRunner().invoke(main, ["bench", "validate", "--model", str(tiny_model_dir("llama")), *arguments])
    assert outcome.exit_code != 0
    assert complaint in outcome.output

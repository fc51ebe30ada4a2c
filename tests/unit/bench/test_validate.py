"""`tandem bench validate`: what a prediction rests on, and how it is held against what was measured."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from click.testing import CliRunner

from bench.load.metrics import summarise
from bench.load.records import RequestRecord
from bench.simulate.loads import LoadSpec
from bench.simulate.systems import Delays, cpu_system
from bench.validate.predict import BESIDE_RANK, LoadAsked, Twin, calibrated, compared, duet_workload, lone_workload
from bench.validate.results import Pair
from tandem.cli.main import main
from tandem.errors import NotReadyError

LOAD = LoadAsked(LoadSpec("sharegpt", 20.0, seed=1, period_s=20.0, length_scale=0.25, context_tokens=2048), 1.5)
ALONE, BESIDE = Delays(2.0, 9.0, 4.0), Delays(5.0, 20.0, 30.0)


def twin_of(alone: Delays, beside: Delays | None = None) -> Twin:
    system = cpu_system(None)
    contention = replace(system.contention, noise=0.0)
    limits = replace(
        system.limits,
        between_steps_ms=alone.between_steps_ms,
        handover_ms=alone.handover_ms,
        join_ms=alone.join_ms,
        beside=beside,
    )
    return Twin(replace(system, contention=contention, limits=limits), "static:50,50", drain_s=30.0)


def lone_of(twin: Twin) -> Sequence[RequestRecord]:
    """One request long after another."""
    requests = lone_workload(LOAD).requests
    return twin.records([replace(each, at_s=30.0 * place) for place, each in enumerate(requests)], LOAD.spec)


def duet_of(twin: Twin) -> Sequence[RequestRecord]:
    return twin.records(duet_workload(twin.system.table, LOAD.spec.context_tokens).requests, LOAD.spec)


def test_delays_are_found_again_alone_and_beside_the_other_phase():
    true = twin_of(ALONE, BESIDE)
    found = calibrated(twin_of(Delays(0.5, 0.5, 0.5)), LOAD, lone_of(true), duet_of(true)).system.limits
    for name in ("between_steps_ms", "handover_ms", "join_ms"):
        assert getattr(found.alone, name) == pytest.approx(getattr(ALONE, name), rel=0.1, abs=0.3)
    assert found.beside.between_steps_ms == pytest.approx(BESIDE.between_steps_ms, rel=0.2)
    again = calibrated(true, LOAD, lone_of(true), duet_of(true))
    seen, predicted = (summarise(duet_of(each), None) for each in (true, again))
    assert predicted.ttft_ms.p50 == pytest.approx(seen.ttft_ms.p50, rel=0.1)
    assert predicted.tpot_ms.p50 == pytest.approx(seen.tpot_ms.p50, rel=0.1)


def test_the_longer_gaps_of_the_duet_are_beside_a_prompt():
    """They move with the delay there, and not with the lone one."""
    gaps_ms = [
        sorted(gap_ms for record in duet_of(twin_of(alone, beside)) for gap_ms in record.gaps_ms[1:])
        for alone, beside in (
            (ALONE, BESIDE),
            (replace(ALONE, between_steps_ms=4.0), BESIDE),
            (ALONE, replace(BESIDE, between_steps_ms=8.0)),
        )
    ]
    ranked_ms = [gaps[int(BESIDE_RANK * len(gaps))] for gaps in gaps_ms]
    assert ranked_ms[1] - ranked_ms[0] < 0.5
    assert ranked_ms[2] - ranked_ms[0] == pytest.approx(3.0, abs=0.7)


def test_requests_that_are_faster_than_their_steps_leave_no_delays():
    fast = [
        replace(each, token_times_s=tuple(each.intended_s + 1e-5 * n for n in range(1, 9)))
        for each in lone_of(twin_of(ALONE))
    ]
    limits = calibrated(twin_of(ALONE), LOAD, fast, fast).system.limits
    assert max(limits.alone.between_steps_ms, limits.alone.handover_ms) < 0.01


def test_what_calibrates_is_none_of_the_load_itself():
    lengths = [(each.num_new_tokens, each.max_tokens) for each in LOAD.requests]
    others = [(each.num_new_tokens, each.max_tokens) for each in lone_workload(LOAD).requests]
    assert others != lengths[: len(others)]
    with pytest.raises(NotReadyError, match="calibrate"):
        calibrated(twin_of(ALONE), LOAD, [], [])


def test_the_twin_sees_the_same_requests_and_is_compared_by_percentiles():
    true = twin_of(ALONE)
    same = compared(true, LOAD, true.records(LOAD.requests, LOAD.spec))
    assert (same.ttft_p90_ms.ratio, same.tpot_p90_ms.ratio) == (1.0, 1.0)
    assert same.measured.num_requests == len(LOAD.requests)
    slower = compared(twin_of(replace(ALONE, between_steps_ms=22.0)), LOAD, true.records(LOAD.requests, LOAD.spec))
    assert slower.tpot_p90_ms.ratio > 1.5
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

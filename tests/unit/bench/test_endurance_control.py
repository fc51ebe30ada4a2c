"""The soaked system against a fresh one: who is asked what when, and what is made of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.endurance.control import (
    SALT,
    Control,
    Pair,
    Pool,
    Side,
    judge_pairs,
    pair_experiments,
    pair_runner,
    run_pairs,
)
from bench.endurance.results import (
    REQUESTS,
    EnduranceResult,
    Judgement,
    control_table,
    control_totals,
    judgement_table,
)
from bench.endurance.trend import Trend, Verdict
from bench.experiment import Experiment
from bench.load.metrics import Summary, distribution, summarise
from bench.load.process import DatedRecords
from bench.load.records import RequestRecord
from bench.reading import read_result
from bench.results import WorkloadFacts, provenance, write_result
from bench.workloads.arrivals import Arrival, ArrivalKind
from bench.workloads.build import WorkloadSpec
from bench.workloads.request import ModelLimits
from tandem.errors import ConfigError
from tests.unit.bench.test_bench_reuse import printed

LIMITS = ModelLimits(1000, 4096)
EXPERIMENT = Experiment(WorkloadSpec("sharegpt", 500, 0.6, Arrival(ArrivalKind.POISSON), LIMITS, seed=7), 4, 30.0)


def summary(ttft_ms: float = 100.0, tpot_ms: float = 10.0) -> Summary:
    empty = summarise((), None)
    return replace(empty, ttft_ms=distribution([ttft_ms]), tpot_ms=distribution([tpot_ms]))


def pairs(*ratios: float) -> list[Pair]:
    """TTFT is so much more; TPOT is equal."""
    return [Pair(Side.FRESH, summary(100.0 * ratio), summary()) for ratio in ratios]


def test_the_first_of_a_pair_changes_and_the_first_pair_does_not_count():
    asked: list[tuple[Side, int]] = []

    def measure(side: Side, number: int) -> Summary:
        asked.append((side, number))
        return summary(ttft_ms=10.0 * number + (side is Side.SOAKED))

    found = run_pairs(3, measure)
    assert asked == [
        (Side.FRESH, 0),
        (Side.SOAKED, 0),
        (Side.SOAKED, 1),
        (Side.FRESH, 1),
        (Side.FRESH, 2),
        (Side.SOAKED, 2),
        (Side.SOAKED, 3),
        (Side.FRESH, 3),
    ]
    assert [pair.first for pair in found] == [Side.SOAKED, Side.FRESH, Side.SOAKED]
    assert [(pair.soaked.ttft_ms.p50, pair.fresh.ttft_ms.p50) for pair in found] == [(11, 10), (21, 20), (31, 30)]


def test_pairs_have_the_long_loads_rate_and_requests_of_their_own():
    specs = [each.spec for each in pair_experiments(EXPERIMENT, 2, 60.0)]
    assert [(spec.num_requests, spec.rate_per_s, spec.seed) for spec in specs] == [
        (36, 0.6, 7),
        (36, 0.6, 8),
        (36, 0.6, 9),
    ]


def test_what_a_trace_does_not_have_is_said_before_the_hour(tmp_path):
    data = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:00:{second:02}.0000000,40,4\n" for second in range(50)]
    data.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(rows))
    spec = replace(EXPERIMENT.spec, name="azure", data=data, seed=0)
    with pytest.raises(ConfigError, match="the trace has 0 requests from number 500 on"):
        pair_experiments(replace(EXPERIMENT, spec=spec), 1, 60.0)


def test_both_sides_get_the_same_requests_in_other_words_than_the_long_load(monkeypatch):
    loads = []

    def run_workload(experiment, target, workload, salt, on_progress):
        loads.append((target, workload, salt))
        record = RequestRecord(0, 0.0, 0.0, (0.1, 0.2), 0.2, 4, 2, 0, "")
        return DatedRecords((record,), 0.0)

    monkeypatch.setattr("bench.endurance.control.run_workload", run_workload)
    measure = pair_runner(pair_experiments(EXPERIMENT, 1, 10.0), {Side.SOAKED: "old", Side.FRESH: "new"}, print)
    found = [measure(side, 1) for side in Side]
    assert [each.ttft_ms.p50 for each in found] == pytest.approx([100.0, 100.0])
    (old, old_requests, old_salt), (new, new_requests, new_salt) = loads
    assert (old, new) == ("old", "new")
    assert old_requests == new_requests
    assert old_salt == new_salt == f"{SALT}/1"


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((1.2, 1.3, 1.05, 1.15), Verdict.GREW),
        ((1.2, 1.3, 0.99, 1.15), Verdict.UNCLEAR),
        ((1.1, 1.1, 1.1), Verdict.HELD),
        ((0.7, 0.8, 2.0), Verdict.HELD),
        ((2.0, 2.0), Verdict.TOO_SHORT),
        ((), Verdict.TOO_SHORT),
    ],
)
def test_latency_grew_when_the_median_is_above_a_tenth_and_every_pair_above_one(ratios, verdict):
    ttft, _, tpot, _ = judge_pairs(pairs(*ratios))
    assert (ttft.measure, ttft.verdict) == ("TTFT p50", verdict)
    assert tpot.verdict is (Verdict.HELD if len(ratios) > 2 else Verdict.TOO_SHORT)


def test_a_pair_in_which_a_side_answered_nothing_has_no_ratio():
    found = [*pairs(1.2, 1.2), Pair(Side.FRESH, summarise((), None), summary())]
    assert judge_pairs(found)[0].verdict is Verdict.TOO_SHORT
    assert judge_pairs(found)[0].ratio.num_rounds == 2


def result(control: Control | None, *judgements: Judgement) -> EnduranceResult:
    facts = WorkloadFacts("azure", "poisson", 10, 0.6, 0)
    return EnduranceResult(provenance(), "semi-pd", facts, None, 60.0, 0.5, {}, (), (), judgements, control)


def control_of(*ratios: float) -> Control:
    found = tuple(pairs(*ratios))
    return Control(60.0, Pool(90, 80), Pool(90, 0), found, judge_pairs(found))


GREW = Trend(1.0, 2.0, 1.0, 0.5, 1.5, 0.1, Verdict.GREW)
SLOWER, LARGER = Judgement(REQUESTS, "TTFT p50", "ms", GREW), Judgement("decode", "memory", "MiB", GREW)


@pytest.mark.parametrize(
    ("control", "judgement", "grew"),
    [
        (None, SLOWER, True),
        (control_of(1.0, 1.0, 1.0), SLOWER, False),
        (control_of(1.0, 1.0, 1.0), LARGER, True),
        (control_of(1.2, 1.2, 1.2), SLOWER, True),
    ],
)
def test_the_control_speaks_for_latency_where_there_is_one(control, judgement, grew):
    assert result(control, judgement).grew is grew


def test_tables_show_the_control_and_put_what_it_replaces_in_brackets():
    shown = result(control_of(1.2, 1.3, 1.4), SLOWER, LARGER)
    assert printed(judgement_table(shown)).count("(grew)") == 1
    assert "1.300 (1.200 to 1.400)" in printed(control_table(shown.control))
    assert "130.0" in printed(control_table(shown.control))
    assert "80 of 90 blocks cached before" in control_totals(shown.control)


def test_a_control_is_read_as_it_was_written(tmp_path: Path):
    for number, each in enumerate((result(control_of(1.2, 1.3, 1.4), SLOWER), result(None, LARGER))):
        write_result(tmp_path / f"{number}.json", each, EnduranceResult)
        assert read_result(tmp_path / f"{number}.json") == each

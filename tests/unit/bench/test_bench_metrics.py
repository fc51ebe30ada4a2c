"""Records to numbers."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.compare import ratios, turns
from bench.display import queue_table
from bench.load.metrics import Slo, attainment, distribution, meets, summarise
from bench.load.records import RequestRecord
from bench.results import Run, WorkloadFacts, latencies_of
from tests.unit.bench.test_bench_reuse import printed

values = st.lists(st.floats(0, 1e6), min_size=2, max_size=200)


def record(
    number: int = 0, intended_s: float = 0.0, times_s=(1.0, 2.0, 4.0), error: str = "", **fields
) -> RequestRecord:
    given_fields = {"sent_s": intended_s, "num_prompt_tokens": 10, "num_cached_tokens": None, **fields}
    ended_s = times_s[-1] if times_s else intended_s + 1
    return RequestRecord(
        number=number,
        intended_s=intended_s,
        token_times_s=tuple(times_s),
        ended_s=ended_s,
        num_expected_tokens=3,
        error=error,
        **given_fields,
    )


@given(values)
def test_percentiles_are_those_of_the_standard_library(found):
    cuts = statistics.quantiles(found, n=100, method="inclusive")
    ours = distribution(found)
    assert [ours.p50, ours.p90, ours.p99] == pytest.approx([cuts[49], cuts[89], cuts[98]], rel=1e-6, abs=1e-6)
    assert ours.mean == pytest.approx(statistics.fmean(found), rel=1e-6, abs=1e-6)
    assert ours.count == len(found)


def test_nothing_has_an_empty_distribution():
    assert distribution([]).count == 0


def test_latencies_count_from_when_the_request_was_due():
    late = record(intended_s=0.5, sent_s=0.9)
    assert late.ttft_ms == pytest.approx(500)
    assert late.tpot_ms == pytest.approx(1500)
    assert late.e2e_ms == pytest.approx(3500)
    assert late.send_delay_ms == pytest.approx(400)
    assert late.gaps_ms == pytest.approx((1000, 2000))


def test_tokens_that_come_together_make_no_gap_but_count_for_tpot():
    together = record(times_s=(1.0, 2.0, 2.0))
    assert together.gaps_ms == pytest.approx((1000,))
    assert together.tpot_ms == pytest.approx(500)


def test_a_single_token_has_no_tpot():
    assert record(times_s=(1.0,)).tpot_ms is None


@pytest.mark.parametrize(
    ("limits", "expected"), [((1000, 1500), True), ((999, 1500), False), ((1000, 1499), False), ((999, 1499), False)]
)
def test_a_request_meets_both_or_misses(limits, expected):
    assert meets(record(), Slo(*limits)) is expected


def test_a_failed_request_meets_nothing_and_a_short_one_has_no_tpot_to_miss():
    generous = Slo(1e9, 1e9)
    assert not meets(record(error="x"), generous)
    assert not meets(record(times_s=(), error="x"), generous)
    assert meets(record(times_s=(1.0,)), Slo(1000, 0.001))


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), min_size=1, max_size=60), st.floats(1, 5000))
def test_attainment_is_the_share_of_all_requests(shapes, limit_ms):
    records = [record(times_s=(first_s, first_s + 1), error="" if ok else "x") for first_s, ok in shapes]
    met = sum(ok and first_s * 1e3 <= limit_ms for first_s, ok in shapes)
    assert attainment(records, Slo(limit_ms, 1e9)) == pytest.approx(met / len(shapes))


def test_a_summary_counts_errors_and_leaves_their_latencies_out():
    records = [
        record(0, 0.0, (1.0, 2.0, 3.0), num_cached_tokens=5),
        record(1, 1.0, (2.0, 3.0, 5.0), num_cached_tokens=0),
        record(2, 1.0, (), error="QueueFullError: full"),
    ]
    summary = summarise(records, Slo(1000, 1000))
    assert (summary.num_requests, summary.num_errors) == (3, 1)
    assert summary.errors == {"QueueFullError: full": 1}
    assert summary.duration_s == pytest.approx(5.0)
    assert summary.requests_per_s == pytest.approx(2 / 5)
    assert summary.output_tokens_per_s == pytest.approx(6 / 5)
    assert summary.prompt_tokens_per_s == pytest.approx(20 / 5)
    assert summary.ttft_ms.count == 2
    assert summary.cached_share == pytest.approx(0.25)
    assert summary.attainment == pytest.approx(1 / 3)


def test_waits_in_the_queue_are_of_those_that_succeeded_and_say_so():
    waits = [record(number, queue_ms=float(number)) for number in range(101)]
    summary = summarise([*waits, record(error="full", queue_ms=1e6)], None)
    assert (summary.queue_ms.p50, summary.queue_ms.p99, summary.longest_queue_ms) == (50.0, 99.0, 100.0)
    silent = summarise([record()], None)
    assert (silent.queue_ms, silent.longest_queue_ms) == (None, None)


def test_a_table_holds_the_longest_wait_of_all_rounds_against_the_bound():
    def run(name: str, bound_s: float | None, *waits_ms: float) -> Run:
        records = [record(number, queue_ms=wait_ms) for number, wait_ms in enumerate(waits_ms)]
        facts = WorkloadFacts("fixed", "poisson", len(records), 1.0, 0)
        return Run(name, facts, summarise(records, None), latencies_of(records), bound_s)

    silent = Run("peer", run("", None).workload, summarise([record()], None), latencies_of([]))
    shown = printed(queue_table([run("a", 10.0, 100, 300), run("a", 10.0, 5000), silent, run("at:b", None, 7)]))
    (first, second) = [line for line in shown.splitlines() if "0.0" in line or "7.0" in line]
    assert first.replace("│", " ").split() == ["a", "2600.0", "2649.0", "5000.0", "0.50"]
    assert second.replace("│", " ").split() == ["at:b", "7.0", "7.0", "7.0"]


def test_a_summary_of_nothing_is_all_zero():
    summary = summarise([], None)
    assert (summary.duration_s, summary.requests_per_s, summary.attainment) == (0.0, 0.0, None)


def test_the_order_of_a_comparison_changes_with_every_round():
    assert turns(["a", "b", "c"], 4) == (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"), ("a", "b", "c"))


def test_ratios_are_taken_round_by_round():
    def run(factor: float):
        return summarise([record(times_s=(factor, 2 * factor, 3 * factor))], None)

    summaries = {"a": [run(1), run(10), run(100)], "b": [run(2), run(5), run(100)], "c": [run(3), run(30), run(300)]}
    assert {
        ratio.median for ratio in ratios(summaries) if (ratio.deployment, ratio.metric) == ("c", "ttft_ms.p50")
    } == {3}
    found = {ratio.metric: ratio for ratio in ratios(summaries) if ratio.deployment == "b"}
    ttft = found["ttft_ms.p50"]
    assert (ttft.median, ttft.lowest, ttft.highest) == pytest.approx((1.0, 0.5, 2.0))
    assert ttft.num_rounds == 3
    assert found["output_tokens_per_s"].median == pytest.approx(1.0)


def test_a_round_in_which_nothing_succeeded_has_no_ratio():
    good, bad = summarise([record()], None), summarise([record(times_s=(), error="x")], None)
    found = {ratio.metric: ratio for ratio in ratios({"a": [good, good], "b": [good, bad]})}
    assert found["ttft_ms.p50"].num_rounds == 1
    assert ratios({"a": [good], "b": [bad]}) == ()

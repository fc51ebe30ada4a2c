"""Overload: what counts as goodput, how refusals are timed, and what the services are told."""

import pytest

from bench.commands.overload import promising
from bench.deployment.open import DeploymentOptions
from bench.goodput import Search
from bench.load.metrics import Slo
from bench.load.records import RequestRecord
from bench.overload.results import LoadedRun, OverloadResult, loaded_run, overload_table
from bench.overload.run import capacity
from bench.results import WorkloadFacts, provenance
from tandem.errors import NotReadyError

SLO = Slo(500, 100)


def answered(number: int, ttft_s: float) -> RequestRecord:
    return RequestRecord(number, 1.0, 1.0, (1.0 + ttft_s, 1.05 + ttft_s), 2.0, 5, 2, 0, "")


def refused(number: int, sent_s: float, ended_s: float) -> RequestRecord:
    return RequestRecord(number, 1.0, sent_s, (), ended_s, 5, 2, None, "QueueFullError: 3 requests are waiting")


RECORDS = (
    answered(0, 0.1),
    answered(1, 0.7),
    refused(2, 1.002, 1.012),
    RequestRecord(3, 1.0, 1.0, (1.1,), 9.0, 5, 2, None, "unfinished when it was cut off"),
)


def test_goodput_is_what_met_both_slos_a_second_and_a_refusal_counts_from_both_times():
    run = loaded_run(RECORDS, SLO, 4.0, 2.0)
    assert (run.num_requests, run.num_met, run.num_refused, run.goodput_per_s) == (4, 1, 1, 0.5)
    assert run.failures == {"unfinished when it was cut off": 1}
    assert run.refused_since_due_ms.p99 == pytest.approx(12.0)
    assert run.refused_since_sent_ms.p99 == pytest.approx(10.0)


def result(peak: LoadedRun) -> OverloadResult:
    over = loaded_run(RECORDS, SLO, 12.0, 1.0)
    return OverloadResult(provenance(), "semi-pd", WorkloadFacts("w", "poisson", 4, 12.0, 0), SLO, 3.0, peak, over)


def test_what_is_left_is_said_over_the_peak():
    assert result(loaded_run(RECORDS, SLO, 4.0, 0.5)).share_of_peak == 0.5
    assert result(loaded_run((), SLO, 4.0, 0.5)).share_of_peak == 0.0
    assert "50.0 %" in str(overload_table(result(loaded_run(RECORDS, SLO, 4.0, 0.5))).caption)


def at(rate_per_s: float, attainment: float) -> LoadedRun:
    records = [answered(number, 0.1 if number < attainment * 100 else 0.7) for number in range(100)]
    return loaded_run(records, SLO, rate_per_s, 10.0)


def test_capacity_is_the_highest_rate_that_is_sustained():
    found = capacity(lambda rate: at(rate, 1.0 if rate <= 3 else 0.5), Search(1.0, tolerance=0.1), "semi-pd")
    assert 2.7 < found <= 3.0
    with pytest.raises(NotReadyError, match="does not meet the SLOs at"):
        capacity(lambda rate: at(rate, 0.5), Search(1.0, max_probes=3), "semi-pd")


def test_services_promise_the_slo_unless_they_are_told_otherwise():
    options = DeploymentOptions("default", {"gateway": {"admit-tpot-ms": 0}, "memd": {"kv-bytes": 1}})
    told = promising(options, SLO).settings
    assert told["gateway"] == {"admit-ttft-ms": 500, "admit-tpot-ms": 0}
    assert told["controller"] == {"slo-ttft-ms": 500, "slo-tpot-ms": 100}
    assert told["memd"] == {"kv-bytes": 1}

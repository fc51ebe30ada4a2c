import pytest

from tandem.partition.observations import LatencyStatistics, RequestStatistics
from tandem.partition.planner import AdmissionAdvice, Prediction
from tandem.partition.status import AppliedShare, Decision, DecisionRecord, PhaseHello, ShareApplied
from tandem.rpc.controller_codecs import hello_from_proto, hello_to_proto
from tandem.rpc.history_codecs import record_from_proto, record_to_proto
from tandem.types import Phase, Split

SEEN = RequestStatistics(
    num_observed_total=3, ttft=LatencyStatistics(p50_ms=1.0, p99_ms=2.0), tpot=LatencyStatistics(p50_ms=3.0, p99_ms=4.0)
)
APPLIED = AppliedShare(Phase.DECODE, ShareApplied(5, True, "a new process", 1.5), 20.0)


@pytest.mark.parametrize("predicted", [None, Prediction(10.0, 20.0, 0.5)])
@pytest.mark.parametrize("applied", [(), (APPLIED, APPLIED)])
@pytest.mark.parametrize("admission", [None, AdmissionAdvice(0.25, "no split meets the SLOs")])
def test_a_record_there_and_back(predicted, applied, admission):
    record = DecisionRecord(Decision(5, Split(40, 60), "why"), 123, SEEN, predicted, applied, admission)
    assert record_from_proto(record_to_proto(record)) == record


@pytest.mark.parametrize("in_force", [None, Split(20, 80)])
def test_a_hello_says_what_is_in_force(in_force):
    hello = PhaseHello(Phase.DECODE, 1, "fake", (), in_force)
    assert hello_from_proto(hello_to_proto(hello)) == hello

import pytest

from tandem.partition.observations import LatencyStatistics, RequestStatistics
from tandem.partition.planner import AdmissionAdvice
from tandem.partition.slo import Slo
from tandem.partition.status import ControllerStatus, Decision, PhaseHello
from tandem.rpc.controller_codecs import (
    hello_from_proto,
    hello_to_proto,
    observation_from_proto,
    observation_to_proto,
    observations_from_proto,
    observations_to_proto,
    status_from_proto,
    status_to_proto,
    step_from_proto,
    step_to_proto,
)
from tandem.rpc.stubs.controller.v1 import controller_pb2 as pb
from tandem.types import Phase, RequestClass, RequestObservation, Split, StepStatistics


@pytest.mark.parametrize("splits", [(), (Split(20, 80), Split(100, 50))])
def test_offers_travel(splits):
    hello = PhaseHello(Phase.DECODE, 42, "cpu-affinity", splits)
    assert hello_from_proto(hello_to_proto(hello)) == hello


def test_a_step_travels_whole():
    step = StepStatistics(12.5, 4, 8, 100, 2, 7, 4096)
    assert step_from_proto(step_to_proto(step)) == step


@pytest.mark.parametrize("admission", [None, AdmissionAdvice(0.0, "too much")])
def test_a_status_travels_with_what_is_promised_what_was_kept_and_what_is_advised(admission):
    ttft, tpot = LatencyStatistics(p50_ms=1, p99_ms=3, p90_ms=2), LatencyStatistics(p50_ms=4, p99_ms=6, p90_ms=5)
    requests = RequestStatistics(9, ttft=ttft, tpot=tpot, num_in_window=8, num_attained=7)
    decision = Decision(1, Split(50, 50), "r")
    status = ControllerStatus(decision, "static", (), requests, True, Slo(2000, 100), admission)
    assert status_from_proto(status_to_proto(status)) == status


@pytest.mark.parametrize("request_class", RequestClass)
def test_an_observation_travels_whole(request_class):
    told = RequestObservation("r", 100.0, 20.0, 80.0, 30.0, 10, 5, 3, True, 9, 2, request_class)
    assert observation_from_proto(observation_to_proto(told)) == told


@pytest.mark.parametrize("count", [1, 3])
def test_observations_of_one_message_travel_in_order(count):
    told = [RequestObservation(f"r{number}", 100.0, 20.0, 80.0, 30.0, 10, 5, 3, True, 9, 2) for number in range(count)]
    message = pb.ObserveRequest.FromString(observations_to_proto(told).SerializeToString())
    assert list(observations_from_proto(message)) == told
    assert observation_from_proto(message) == told[0], "what an earlier release takes of it"


@pytest.mark.parametrize("name", ["", "urgent"])
def test_a_class_that_nobody_knows_is_interactive(name):
    assert observation_from_proto(pb.ObserveRequest(request_class=name)).request_class is RequestClass.INTERACTIVE

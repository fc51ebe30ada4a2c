import pytest

from tandem.partition.status import PhaseHello
from tandem.rpc.controller_codecs import (
    hello_from_proto,
    hello_to_proto,
    observation_from_proto,
    observation_to_proto,
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


@pytest.mark.parametrize("request_class", RequestClass)
def test_an_observation_travels_whole(request_class):
    told = RequestObservation("r", 100.0, 20.0, 80.0, 30.0, 10, 5, 3, True, 9, 2, request_class)
    assert observation_from_proto(observation_to_proto(told)) == told


@pytest.mark.parametrize("name", ["", "urgent"])
def test_a_class_that_nobody_knows_is_interactive(name):
    assert observation_from_proto(pb.ObserveRequest(request_class=name)).request_class is RequestClass.INTERACTIVE

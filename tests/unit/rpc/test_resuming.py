"""When a call is tried again, and what it asks for then."""

import grpc
import pytest

from tandem.clock import ManualClock
from tandem.errors import DeadlineError, NotReadyError, QueueFullError, SequenceFailedError
from tandem.rpc import resuming
from tandem.rpc.resuming import Attempts, RetryPolicy
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb

POLICY = RetryPolicy(give_up_s=10.0, first_pause_s=1.0, last_pause_s=4.0)
ORIGIN = pb.Origin(seed=7, arrival_unix_ns=8, model_digest="m")


class CutOffError(Exception):
    """As grpc's own, with the error that it becomes."""

    def __init__(self, error):
        self.error = error

    def code(self):
        return grpc.StatusCode.UNAVAILABLE


@pytest.fixture(autouse=True)
def errors(monkeypatch):
    monkeypatch.setattr(resuming, "error_from_rpc", lambda failure: failure.error)


AWAY = CutOffError(NotReadyError("away"))


def attempts(clock=None, policy=POLICY, timeout_s=None, **sampling):
    request = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(**sampling))
    return Attempts(request, policy, timeout_s, clock=clock or ManualClock(), draw=lambda: 1.0)


def test_the_first_attempt_is_the_plain_request():
    assert not attempts().request.HasField("resume")


def test_a_later_one_names_all_that_came():
    call = attempts(n=2)
    call.note(pb.GenerateResponse(index=1, token_ids=[4], origin=ORIGIN))
    call.note(pb.GenerateResponse(index=0, token_ids=[5, 6], finish_reason=1))
    call.note(pb.GenerateResponse(index=1, token_ids=[7]))
    call.pause_s(AWAY)
    resume = call.request.resume
    assert resume.origin == ORIGIN
    first, second = resume.answers
    assert (first.index, list(first.token_ids), first.finished) == (0, [], True)
    assert (second.index, list(second.token_ids), second.finished) == (1, [4, 7], False)
    call.note(pb.GenerateResponse(index=1, token_ids=[8]))
    call.pause_s(AWAY)
    assert list(call.request.resume.answers[1].token_ids) == [4, 7, 8]
    assert not call.complete
    call.note(pb.GenerateResponse(index=1, finish_reason=2))
    assert call.complete


def test_pauses_double_up_to_a_bound_and_begin_anew_with_a_message():
    call = attempts()
    assert [call.pause_s(AWAY) for _ in range(4)] == [1.0, 2.0, 4.0, 4.0]
    call.note(pb.GenerateResponse())
    assert call.pause_s(AWAY) == 1.0


def test_it_is_given_up_when_nothing_comes_for_long():
    clock = ManualClock()
    call = attempts(clock)
    clock.advance(9)
    call.note(pb.GenerateResponse())
    clock.advance(9)
    call.pause_s(AWAY)
    clock.advance(1)
    with pytest.raises(NotReadyError):
        call.pause_s(AWAY)


def test_it_can_be_turned_off():
    with pytest.raises(NotReadyError):
        attempts(policy=RetryPolicy(give_up_s=0)).pause_s(AWAY)


@pytest.mark.parametrize("error", [SequenceFailedError("x"), DeadlineError("x")])
def test_what_another_attempt_does_not_mend_is_raised(error):
    with pytest.raises(type(error)):
        attempts().pause_s(CutOffError(error))


def test_a_full_queue_is_waited_for_by_those_who_were_in_it_before():
    full = CutOffError(QueueFullError("full", 3.0))
    with pytest.raises(QueueFullError):
        attempts().pause_s(full)
    call = attempts()
    call.pause_s(AWAY)
    assert call.pause_s(full) == 3.0


def test_no_pause_outlasts_the_deadline():
    clock = ManualClock()
    call = attempts(clock, timeout_s=1.5)
    clock.advance(1.0)
    assert (call.pause_s(AWAY), call.time_left_s) == (0.5, 0.5)
    clock.advance(1.0)
    assert call.time_left_s == 0.0

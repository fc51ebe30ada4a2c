"""The oracle says what is wrong, and nothing else: answers, what is left, growth, pauses."""

import dataclasses

import pytest

from tandem.client import Piece, ServerStatus
from tandem.kv.store import HolderStatistics, StorageStatistics
from tandem.types import Fingerprint, FinishReason
from tests.chaos.cases import Case, Ending
from tests.chaos.growth import DESCRIPTORS, MEMORY, Sample, Verdict, growth_of
from tests.chaos.oracle import RestingSystem, difference, judge, leftovers
from tests.chaos.pauses import Window, pauses, summarise
from tests.chaos.records import End, Heard, Record

WHOLE = {0: Heard((1, 2, 3), "abc", (-0.5, -0.25, -1.0), FinishReason.LENGTH)}


def changed(**fields):
    return {0: dataclasses.replace(WHOLE[0], **fields)}


def record(answers, end=End.READ, ending=Ending.READ, *, moments_s=(), began_s=0.0, error=""):
    case = Case(0, (1,), {}, ending, 2)
    return Record(3, "r", case, began_s, list(moments_s), dict(answers), end, 9.0, error)


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        (WHOLE, ""),
        (changed(logprobs=(-0.5001, -0.25, -1.0)), ""),
        (changed(token_ids=(1, 7, 3)), "token 1 of 3 is 7, not 2"),
        (changed(token_ids=(1, 2, 3, 3)), "4 tokens, not 3"),
        (changed(token_ids=(1, 2)), "2 tokens, not 3"),
        (changed(text="abd"), "text 'abd'"),
        (changed(finish_reason=FinishReason.STOP), "it ended by STOP, not LENGTH"),
        (changed(finish_reason=FinishReason.NONE), "it ended by NONE, not LENGTH"),
        (changed(logprobs=(-0.5, -0.25, -1.1)), "off by 0.1"),
        ({}, "answers [] came, not [0]"),
        ({**WHOLE, 1: WHOLE[0]}, "answers [0, 1] came, not [0]"),
    ],
)
def test_an_answer_is_the_undisturbed_one_or_it_is_said_where_it_is_not(got, problem):
    found = difference(got, WHOLE)
    assert problem in found
    assert bool(found) == bool(problem)


def test_who_left_may_have_a_beginning_and_no_other():
    beginning = Heard((1, 2), "ab", (-0.5, -0.25))
    assert not difference({0: beginning}, WHOLE, may_be_short=True)
    assert not difference(
        {0: dataclasses.replace(beginning, finish_reason=FinishReason.ABORT)}, WHOLE, may_be_short=True
    )
    assert difference({0: dataclasses.replace(beginning, token_ids=(1, 3))}, WHOLE, may_be_short=True)
    assert difference({0: dataclasses.replace(beginning, text="b")}, WHOLE, may_be_short=True)
    assert difference({0: dataclasses.replace(beginning, finish_reason=FinishReason.STOP)}, WHOLE, may_be_short=True)
    assert not difference({}, WHOLE, may_be_short=True)


@pytest.mark.parametrize(
    ("request_", "rule"),
    [
        (record(WHOLE), None),
        (record(changed(text="x")), "every answer is the undisturbed one"),
        (record(WHOLE, End.STUCK), "no stream is stuck"),
        (record({}, End.OPEN), "no stream is stuck"),
        (record({}, End.FAILED, error="NotReadyError: away"), "no error reaches a client"),
        (record({}, End.FAILED, Ending.ABORT, error="x"), None),
        (record({}, End.CLOSED, Ending.CLOSE), None),
        (record(changed(token_ids=(9,)), End.CLOSED, Ending.CLOSE), "every answer is the undisturbed one"),
    ],
)
def test_a_request_is_judged_by_how_it_ended(request_, rule):
    violation = judge(request_, WHOLE)
    assert (violation.rule if violation else None) == rule
    if violation is not None:
        assert "stream 3, request r, case 0" in violation.what
        assert (violation.start_s, violation.end_s) == (0.0, 9.0)


def test_messages_add_up_to_answers():
    one = record({})
    for index, token_ids, text, reason in [(0, (1,), "a", 0), (1, (5,), "x", 2), (0, (2, 3), "bc", 2), (0, (), "", 2)]:
        one.take(Piece("r", index, text, token_ids, (), FinishReason(reason), "", None), now_s=float(index))
    assert one.answers[0].token_ids == (1, 2, 3)
    assert (one.answers[0].text, one.answers[1].text, one.num_tokens) == ("abc", "x", 4)
    assert one.moments_s == [0.0, 1.0, 0.0], "a message without tokens ends no wait"


RESTING = RestingSystem(
    StorageStatistics(
        Fingerprint("m", "float32", "float32", "l", 16, 100, "v"), 1, 100, 50, 20, 0, 30, 0, 0, 0,
        (HolderStatistics(1, "prefill", 11, 8, 0), HolderStatistics(2, "decode", 12, 12, 0)),
    ),
    ServerStatus(0, 0, 0, 5, 5, True, True, True, 0.0, 0.0),
    {"prefill": 11, "decode": 12, "memd": 13},
    {"prefill": 8, "decode": 12},
)  # fmt: skip


def storage(**fields):
    return dataclasses.replace(RESTING, storage=dataclasses.replace(RESTING.storage, **fields))


@pytest.mark.parametrize(
    ("resting", "rules"),
    [
        (RESTING, []),
        (storage(num_free_blocks=49), ["every block is accounted for"]),
        (storage(num_free_blocks=49, num_leased_blocks=1, num_sequences=1), ["no lease is left"]),
        (storage(num_sequences=1), ["no lease is left"]),
        (dataclasses.replace(RESTING, pids={"prefill": 11, "decode": 99}), ["only living phases hold blocks"]),
        (
            dataclasses.replace(RESTING, spare_blocks={"prefill": 8, "decode": 11}),
            ["a phase knows of its spare blocks"],
        ),
        (
            dataclasses.replace(RESTING, status=dataclasses.replace(RESTING.status, num_decoding=1)),
            ["the gateway is empty"],
        ),
    ],
)
def test_what_is_left_is_named(resting, rules):
    assert [violation.rule for violation in leftovers(resting)] == rules


def samples(rise_per_s, num_samples=300, noise=0):
    for second in range(num_samples):
        age_s = second % 10  # it is killed every ten seconds
        value = int(100e6 + rise_per_s * second + noise * (second % 7) - 30e6 * (age_s < 3))
        yield Sample(float(second), "decode", 1 + second // 10, float(age_s), value, 50 + second // 100)


def test_steady_growth_over_restarts_is_seen():
    per_s = 2 * MEMORY.of(100e6) / 300
    memory, descriptors = growth_of(list(samples(per_s, noise=100_000)))
    assert memory.verdict is Verdict.GROWS
    assert memory.rise == pytest.approx(per_s * 240, rel=0.05)
    assert descriptors.verdict is Verdict.FLAT
    assert descriptors.bound == max(DESCRIPTORS.fixed, DESCRIPTORS.share * descriptors.mean)


def test_noise_and_a_start_are_no_growth_and_a_short_run_says_nothing():
    flat, _ = growth_of(list(samples(0, noise=1_000_000)))
    assert flat.verdict is Verdict.FLAT
    short, _ = growth_of(list(samples(1e9, num_samples=40)))
    assert short.verdict is Verdict.UNKNOWN


def test_a_pause_is_the_longest_wait_that_reaches_into_the_window():
    ended = record(WHOLE, moments_s=(1.0, 1.5, 4.0, 4.2), began_s=0.5)
    assert pauses([ended], Window(2.0, 3.0)) == (2.5,)
    assert pauses([ended], Window(3.9, 4.1)) == (2.5,)
    assert pauses([ended], Window(5.0, 6.0)) == ()
    assert pauses([ended], Window(0.4, 6.0)) == (), "it had not begun"
    waiting = record({}, End.OPEN, moments_s=(), began_s=1.0)
    assert pauses([waiting], Window(2.0, 6.0)) == (5.0,)


def test_pauses_are_summed_up_over_faults():
    summary = summarise([(1.0, 2.0), (3.0,)])
    assert (summary.num_faults, summary.num_pauses, summary.p50_s, summary.longest_s) == (2, 3, 2.0, 3.0)
    assert summarise([()]).longest_s == 0.0

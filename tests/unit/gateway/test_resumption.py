"""Requests that are taken up again: nothing repeated, nothing skipped, and what cannot be is refused by name."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.requests import Arrival, State, new_request
from services.gateway.resumption import Origin, Resume, ResumedAnswer
from services.gateway.validation import Limits, SamplingFields, resolve
from tandem.config.settings import GatewayConfig
from tandem.errors import DuplicateRequestError, InvalidRequestError, QueueFullError
from tandem.types import FinishReason, SequenceOutput
from tests.support.gateway_fakes import Rig, read_all, settle, text_of, tokens_of
from tests.support.gateway_world import EOS, ByteTokenizer

LENGTH = FinishReason.LENGTH
A, B, C = b"abc"
LIMITS = Limits(260, 512, 8, 16, (EOS,))


@pytest.fixture
async def rig() -> Rig:
    return await Rig().up()


def origin_of(request) -> Origin:
    return request.arrival.origin


def resume_of(origin: Origin, *answers: ResumedAnswer) -> Resume:
    return Resume(origin, answers)


async def cut_off(rig: Rig, *tokens: int, **sampling) -> Origin:
    """A request that got these tokens from a gateway that ended; what its client knows of it."""
    old = await Rig().up()
    request = await old.request("hello", **sampling)
    old.prefilled(tokens[0])
    for token in tokens[1:]:
        old.token(token)
    return origin_of(request)


async def test_it_goes_on_behind_the_tokens_that_came(rig):
    origin = await cut_off(rig, A, B, max_tokens=4)
    request = await rig.request("hello", resume=resume_of(origin, ResumedAnswer(0, (A, B))), max_tokens=4)
    (spec,) = rig.prefill.submitted
    assert (spec.token_ids, spec.num_prompt_tokens) == ((*b"hello", A, B), 5)
    assert (spec.stop.max_tokens, spec.sampling.seed) == (4, origin.seed)
    rig.prefilled(C, cached=4)
    rig.token(A, LENGTH)
    pieces = await read_all(request)
    assert (text_of(pieces), tokens_of(pieces)) == ("ca", [C, A])
    assert (pieces[-1].usage.num_prompt_tokens, pieces[-1].usage.num_output_tokens) == (5, 4)
    assert rig.observations.seen[-1].num_output_tokens == 2, "what another gateway sent is not this one's"
    await rig.assert_all_released()


async def test_a_resumed_request_keeps_its_place():
    rig = await Rig(config=GatewayConfig(max_running=1)).up()
    first = await rig.request("first")
    young = await rig.request("young")
    origin = replace(origin_of(young), arrival_unix_ns=origin_of(first).arrival_unix_ns)
    await rig.request("old", resume=resume_of(origin, ResumedAnswer(0, (A,))))
    rig.prefilled(A, LENGTH)
    assert rig.prefill.submitted[-1].token_ids == (*b"old", A)


async def test_an_arrival_in_the_future_is_now(rig):
    origin = replace(await cut_off(rig, A), arrival_unix_ns=2**63)
    request = await rig.request("hello", resume=resume_of(origin, ResumedAnswer(0, (A,))))
    assert request.arrival.unix_ns < 1000


async def test_the_seed_is_the_first_streams(rig):
    origin = replace(await cut_off(rig, A), seed=77)
    request = await rig.request("hello", resume=resume_of(origin))
    assert rig.prefill.submitted[0].sampling.seed == 77
    assert origin_of(request).seed == 77


async def test_the_one_that_still_runs_gives_way(rig):
    old = await rig.request("hello", request_id="r", max_tokens=3)
    lease_id = rig.prefilled(A).lease_id
    new = await rig.request("hello", request_id="r", max_tokens=3, resume=resume_of(origin_of(old)))
    with pytest.raises(DuplicateRequestError, match="resumed"):
        await read_all(old)
    assert rig.decode.aborted == [lease_id]
    rig.gateway.frontend.cancel(old)
    rig.obey_aborts()
    rig.prefilled(A)
    rig.token(B)
    rig.token(C, LENGTH)
    assert text_of(await read_all(new)) == "abc"
    await rig.assert_all_released()


async def test_a_full_queue_has_room_for_what_an_ended_gateway_had():
    rig = await Rig(config=GatewayConfig(max_running=1, max_waiting=1)).up()
    kept = [await rig.request() for _ in range(2)]
    with pytest.raises(QueueFullError):
        await rig.request()
    kept.append(await rig.request(resume=Resume()))
    with pytest.raises(QueueFullError):
        await rig.request(resume=Resume())
    for request in kept:
        rig.gateway.frontend.cancel(request)
    await rig.assert_all_released()


async def test_several_answers_go_on_each_where_it_was(rig):
    origin = await cut_off(rig, A, n=3, max_tokens=3)
    resume = resume_of(origin, ResumedAnswer(0, finished=True), ResumedAnswer(1, (A, B)))
    request = await rig.request("hello", n=3, max_tokens=3, resume=resume)
    third, second = sorted(rig.prefill.submitted, key=lambda spec: len(spec.token_ids))
    assert [second.token_ids, third.token_ids] == [(*b"hello", A, B), (*b"hello",)]
    assert len({origin.seed, second.sampling.seed, third.sampling.seed}) == 3
    rig.prefilled(C, LENGTH, lease_id=second.lease_id)
    rig.prefilled(A, LENGTH, lease_id=third.lease_id)
    pieces = await read_all(request)
    assert [text_of(pieces, index) for index in range(3)] == ["", "c", "a"]
    await rig.assert_all_released()


async def test_siblings_of_an_answer_without_tokens_are_forked_as_ever(rig):
    origin = await cut_off(rig, A, n=2)
    request = await rig.request(
        "x" * 40, n=2, max_tokens=1, resume=resume_of(origin, ResumedAnswer(0), ResumedAnswer(1))
    )
    assert len(rig.prefill.submitted) == 1
    rig.prefilled(A, LENGTH)
    await settle()
    assert len(rig.store.forks) == 1
    rig.prefilled(B, LENGTH)
    assert text_of(await read_all(request), 1) == "b"
    await rig.assert_all_released()


@pytest.mark.parametrize(
    ("answers", "field"),
    [
        ([ResumedAnswer(2)], "resume.answers[0].index"),
        ([ResumedAnswer(0), ResumedAnswer(0)], "resume.answers[1].index"),
        ([ResumedAnswer(0, (A,) * 4)], "resume.answers[0].token_ids"),
        ([ResumedAnswer(0, (260,))], "resume.answers[0].token_ids"),
        ([ResumedAnswer(0, (A, EOS))], "resume.answers[0].token_ids"),
        ([ResumedAnswer(0, (A, *b"END"))], "resume.answers.token_ids"),
        ([ResumedAnswer(0, finished=True), ResumedAnswer(1, finished=True)], "resume.answers"),
    ],
)
async def test_what_cannot_go_on_is_refused_by_name(rig, answers, field):
    origin = await cut_off(rig, A)
    max_tokens = 8 if field == "resume.answers.token_ids" else 4
    with pytest.raises(InvalidRequestError) as caught:
        await rig.request("hello", n=2, max_tokens=max_tokens, stop=("END",), resume=resume_of(origin, *answers))
    assert caught.value.field == field
    assert rig.prefill.submitted == []


async def test_another_model_does_not_go_on_with_it(rig):
    origin = replace(await cut_off(rig, A), model_digest="other")
    with pytest.raises(InvalidRequestError, match="another model"):
        await rig.request("hello", resume=resume_of(origin, ResumedAnswer(0, (A,))))
    with pytest.raises(InvalidRequestError, match=r"resume\.origin"):
        await rig.request("hello", resume=Resume(None, (ResumedAnswer(0, (A,)),)))


@given(
    st.lists(st.one_of(st.sampled_from(b"abc"), st.integers(0, 255)), min_size=1, max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    st.integers(0, 4),
    st.data(),
)
def test_wherever_it_is_cut_the_text_is_the_same(tokens, stop, min_tokens, data):
    def begun(resume: Resume | None = None):
        fields = SamplingFields(stop=tuple(stop), max_tokens=len(tokens), min_tokens=min(min_tokens, len(tokens)))
        arrival = Arrival("r", (1, 2), resolve(fields, 2, 0, LIMITS), 0, 0.0, 0, b"")
        request = new_request(arrival, ByteTokenizer(), 100, *([resume] if resume else []))
        return request.sequences[0]

    def run(sequence, rest):
        pieces = []
        for number, token in enumerate(rest, start=len(sequence.output_token_ids) + 1):
            reason = LENGTH if number == len(tokens) else FinishReason.NONE
            pieces.append(sequence.push(SequenceOutput(1, token, None, reason), 0.0))
            if pieces[-1].finish_reason is not FinishReason.NONE:
                break
        return pieces

    whole = run(begun(), tokens)
    cut = data.draw(st.integers(0, len(whole) - 1))
    first = run(begun(), tokens[:cut])
    again = begun(Resume(Origin(0, 0, ""), (ResumedAnswer(0, tuple(tokens[:cut])),)))
    assert again.state is State.QUEUED
    both = list(itertools.chain(first, run(again, tokens[cut:])))
    assert both == whole

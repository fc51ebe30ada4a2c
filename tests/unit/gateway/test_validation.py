"""Every field at and beyond its bounds."""

import math

import pytest
import torch

from services.gateway.validation import (
    MIN_TEMPERATURE,
    Limits,
    SamplingFields,
    check_prompt,
    check_request_id,
    resolve,
    seed_of_answer,
)
from tandem.errors import InvalidRequestError
from tandem.runner.adjustments import adjust
from tandem.types import SamplingSpec

LIMITS = Limits(vocab_size=100, max_context_tokens=64, max_tokens_default=32, max_n=4, eos_token_ids=(2, 3))


def resolved(num_prompt_tokens=10, **fields):
    return resolve(SamplingFields(**fields), num_prompt_tokens, 77, LIMITS)


def test_defaults():
    request = resolved()
    assert request.sampling == SamplingSpec(seed=77)
    assert request.stop.max_tokens == 32
    assert request.stop.min_tokens == 0
    assert request.stop.stop_token_ids == (2, 3)
    assert (request.stop_strings, request.client_stop_ids, request.n) == ((), frozenset(), 1)


NUMBERS = {
    "temperature": ([0.0, 1e9], [-0.001, -math.inf, math.inf, math.nan]),
    "top_p": ([1e-6, 1.0], [0.0, -0.1, 1.0001, math.nan, math.inf]),
    "min_p": ([0.0, 1.0], [-0.001, 1.001, math.nan, math.inf]),
    "repetition_penalty": ([0.001, 50.0], [0.0, -1.0, math.nan, math.inf]),
    "presence_penalty": ([-2.0, 2.0], [-2.001, 2.001, math.nan, math.inf]),
    "frequency_penalty": ([-2.0, 2.0], [-2.001, 2.001, math.nan, -math.inf]),
    "top_k": ([0, 1, 10**6], [-1]),
    "seed": ([0, 2**64 - 1], []),
}
GOOD = [(name, value) for name, (good, _) in NUMBERS.items() for value in good]
BAD = [(name, value) for name, (_, bad) in NUMBERS.items() for value in bad]


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_a_value_in_range_is_taken(name, value):
    assert getattr(resolved(**{name: value}).sampling, name) == value


@pytest.mark.parametrize("penalty", [1e-45, 1e-38])
def test_no_penalty_is_so_small_that_logits_overflow(penalty):
    sampling, row = resolved(repetition_penalty=penalty).sampling, torch.full((LIMITS.vocab_size,), 1e4)
    adjust(row, sampling, [1], [2], ())
    assert (row / MIN_TEMPERATURE).isfinite().all()


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InvalidRequestError) as caught:
        resolved(**{name: value})
    assert caught.value.field == f"sampling.{name}"
    assert "; use " in caught.value.problem


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": 0}, "sampling.max_tokens"),
        ({"max_tokens": -1}, "sampling.max_tokens"),
        ({"max_tokens": 55}, "sampling.max_tokens"),
        ({"min_tokens": -1}, "sampling.min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "sampling.min_tokens"),
        ({"min_tokens": 33}, "sampling.min_tokens"),
        ({"n": 0}, "sampling.n"),
        ({"n": 5}, "sampling.n"),
        ({"logprobs": -1}, "sampling.logprobs"),
        ({"logprobs": 21}, "sampling.logprobs"),
        ({"stop": ("a", "")}, "sampling.stop[1]"),
        ({"stop": ("a",) * 17}, "sampling.stop"),
        ({"stop": ("a" * 1025,)}, "sampling.stop[0]"),
        ({"stop_token_ids": (1, 100)}, "sampling.stop_token_ids[1]"),
        ({"stop_token_ids": (1,) * 1025}, "sampling.stop_token_ids"),
        ({"logit_bias": {100: 1.0}}, "sampling.logit_bias[100]"),
        ({"logit_bias": {1: 100.1}}, "sampling.logit_bias[1]"),
        ({"logit_bias": {1: -100.1}}, "sampling.logit_bias[1]"),
        ({"logit_bias": {1: math.nan}}, "sampling.logit_bias[1]"),
    ],
)
def test_a_refusal_names_field_and_remedy(fields, field):
    with pytest.raises(InvalidRequestError) as caught:
        resolved(**fields)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert any(word in caught.value.problem for word in ("use ", "lower", "leave", "ends at"))


def test_what_stands_at_the_bounds_is_taken():
    request = resolved(
        max_tokens=54,
        min_tokens=54,
        n=4,
        logprobs=20,
        stop=("a" * 1024,) * 16,
        stop_token_ids=(99,),
        logit_bias={0: -100.0, 99: 100.0},
    )
    assert (request.stop.max_tokens, request.stop.min_tokens, request.n) == (54, 54, 4)
    assert (request.sampling.logprobs, request.sampling.num_top_logprobs) == (True, 20)
    assert request.sampling.logit_bias == {0: -100.0, 99: 100.0}
    assert request.stop.stop_token_ids == (2, 3, 99)
    assert request.client_stop_ids == {99}


def test_logprobs_of_zero_are_the_tokens_own():
    sampling = resolved(logprobs=0).sampling
    assert (sampling.logprobs, sampling.num_top_logprobs) == (True, 0)


def test_unset_max_tokens_is_what_the_context_leaves():
    assert resolved(num_prompt_tokens=60).stop.max_tokens == 4
    assert resolved(num_prompt_tokens=1).stop.max_tokens == 32


def test_ignore_eos_leaves_the_clients_own():
    assert resolved(ignore_eos=True, stop_token_ids=(2,)).stop.stop_token_ids == (2,)
    assert resolved(ignore_eos=False).stop.stop_token_ids == (2, 3)


def test_a_temperature_too_small_to_divide_by_is_greedy():
    assert resolved(temperature=1e-30).sampling.temperature == 0.0


@pytest.mark.parametrize(
    ("token_ids", "field"),
    [([], "text"), ([1, 100], "text[1]"), ([1] * 64, "text"), ([2**32 - 1], "text[0]")],
)
def test_prompts_that_cannot_be_served(token_ids, field):
    with pytest.raises(InvalidRequestError) as caught:
        check_prompt(token_ids, "text", LIMITS)
    assert caught.value.field == field


def test_a_prompt_that_leaves_room_for_one_token():
    check_prompt([99] * 63, "text", LIMITS)
    assert resolved(num_prompt_tokens=63).stop.max_tokens == 1


@pytest.mark.parametrize("request_id", ["x" * 129, "a\nb", "a\x00", "\u202e", "a\u2028b"])
def test_request_ids_that_are_refused(request_id):
    with pytest.raises(InvalidRequestError) as caught:
        check_request_id(request_id)
    assert caught.value.field == "request_id"


@pytest.mark.parametrize("request_id", ["", "x" * 128, "größe-1/2 ✓"])
def test_request_ids_that_are_taken(request_id):
    check_request_id(request_id)


def test_seeds_of_answers_follow_from_the_seed_alone():
    spec = SamplingSpec(seed=2**64 - 1, temperature=0.5)
    answers = [seed_of_answer(spec, index) for index in range(16)]
    assert answers[0] == spec
    assert len({answer.seed for answer in answers}) == 16
    assert all(0 <= answer.seed < 2**64 and answer.temperature == 0.5 for answer in answers)
    assert answers == [seed_of_answer(spec, index) for index in range(16)]

"""Every value that crosses a phase's stream comes back equal, through bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.rpc import codecs
from tandem.rpc.stubs.common.v1 import common_pb2
from tandem.rpc.stubs.decode.v1 import decode_pb2
from tandem.rpc.stubs.prefill.v1 import prefill_pb2
from tandem.types import (
    AbortSequence,
    DecodeResult,
    DropReason,
    FinishReason,
    Prefilled,
    PrefillResult,
    SamplingSpec,
    SequenceDropped,
    SequenceOutput,
    SequenceSpec,
    Span,
    StopSpec,
    Submit,
    TokenLogprobs,
    TopLogprob,
)

uint32s = st.integers(0, 2**32 - 1)
uint64s = st.integers(0, 2**64 - 1)
floats = st.floats(width=32, allow_nan=False)
samplings = st.builds(
    SamplingSpec,
    temperature=floats,
    top_p=floats,
    top_k=st.integers(0, 2**31 - 1),
    min_p=floats,
    repetition_penalty=floats,
    presence_penalty=floats,
    frequency_penalty=floats,
    seed=uint64s,
    logit_bias=st.dictionaries(uint32s, floats, max_size=3),
    logprobs=st.booleans(),
    num_top_logprobs=uint32s,
)
tokens = st.lists(uint32s, max_size=20).map(tuple)
spans = st.lists(st.builds(Span, uint32s, uint32s), max_size=3).map(tuple)
sequences = st.builds(
    SequenceSpec,
    lease_id=uint64s,
    request_id=st.text(max_size=20),
    token_ids=tokens,
    num_prompt_tokens=uint32s,
    sampling=samplings,
    stop=st.builds(StopSpec, max_tokens=uint32s, min_tokens=uint32s, stop_token_ids=tokens),
    priority=st.integers(-(2**31), 2**31 - 1),
    arrival_unix_ns=uint64s,
    approximate=spans,
    domain=st.binary(max_size=16),
)
commands = st.one_of(st.builds(Submit, sequences), st.builds(AbortSequence, uint64s))
logprobs = st.builds(
    TokenLogprobs, logprob=floats, top=st.lists(st.builds(TopLogprob, uint32s, floats), max_size=3).map(tuple)
)
outputs = st.builds(
    SequenceOutput,
    lease_id=uint64s,
    token_id=uint32s,
    logprobs=st.none() | logprobs,
    finish_reason=st.sampled_from(FinishReason),
    num_refreshed=uint32s,
)
drops = st.builds(SequenceDropped, lease_id=uint64s, reason=st.sampled_from(DropReason), message=st.text(max_size=20))
prefilleds = st.builds(
    Prefilled, output=outputs, wait_ms=floats, compute_ms=floats, num_cached_tokens=uint32s, approximate=spans
)


@given(commands)
def test_commands_come_back_equal_on_both_streams(command):
    prefill = prefill_pb2.RunRequest.FromString(codecs.command_to_prefill(command).SerializeToString())
    decode = decode_pb2.RunRequest.FromString(codecs.command_to_decode(command).SerializeToString())
    assert codecs.command_from_proto(prefill) == command
    assert codecs.command_from_proto(decode) == command


@given(st.lists(prefilleds, max_size=3).map(tuple), st.lists(drops, max_size=3).map(tuple))
def test_prefill_results_come_back_equal(prefilled, dropped):
    result = PrefillResult(prefilled, dropped)
    message = codecs.prefill_result_to_proto(result)
    assert codecs.prefill_result_from_proto(prefill_pb2.RunResponse.FromString(message.SerializeToString())) == result


@given(st.lists(outputs, max_size=3).map(tuple), st.lists(drops, max_size=3).map(tuple))
def test_decode_results_come_back_equal(results, dropped):
    result = DecodeResult(results, dropped)
    message = codecs.decode_result_to_proto(result)
    assert codecs.decode_result_from_proto(decode_pb2.RunResponse.FromString(message.SerializeToString())) == result


@pytest.mark.parametrize("kind", [prefill_pb2.RunRequest, decode_pb2.RunRequest])
def test_a_command_of_an_unknown_kind_is_none(kind):
    assert codecs.command_from_proto(kind()) is None


def test_enums_carry_the_protos_numbers():
    assert {int(reason) for reason in DropReason} == set(common_pb2.DropReason.values()) - {0}
    assert {int(reason) for reason in FinishReason} == set(common_pb2.FinishReason.values())

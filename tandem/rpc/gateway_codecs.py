"""Between the client API's protos and `tandem.rpc.gateway_values`."""

from collections.abc import Mapping, Sequence
from typing import Any

from tandem.errors import InvalidRequestError
from tandem.rpc.gateway_values import (
    Answer,
    CallOptions,
    Messages,
    ModelInfo,
    Piece,
    Prompt,
    ReplicaStatus,
    Reuse,
    SamplingValue,
    SegmentUsage,
    ServerStatus,
    TokenLogprob,
    Usage,
)
from tandem.rpc.stubs.common.v1 import common_pb2 as common
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.types import FinishReason, Span, TopLogprob


def generate_request(prompt: Prompt, options: CallOptions) -> pb.GenerateRequest:
    """TypeError: a sampling parameter that is none. InvalidRequestError: a value that its field cannot hold."""
    request = pb.GenerateRequest(
        request_id=_text("request_id", options.request_id),
        sampling=_sampling(options.sampling),
        priority=_priority(options.priority),
        cache_salt=_text("cache_salt", options.cache_salt),
        reuse=None if options.reuse is None else _reuse(options.reuse),
    )
    if isinstance(prompt, str):
        request.text = _text("text", prompt)
    else:
        request.token_ids.CopyFrom(_token_ids(prompt))
    return request


def chat_request(messages: Messages, options: CallOptions) -> pb.ChatRequest:
    """InvalidRequestError, TypeError: as of `generate_request`."""
    return pb.ChatRequest(
        request_id=_text("request_id", options.request_id),
        messages=_messages(messages),
        sampling=_sampling(options.sampling),
        priority=_priority(options.priority),
        cache_salt=_text("cache_salt", options.cache_salt),
        reuse=None if options.reuse is None else _reuse(options.reuse),
    )


def tokenize_request(source: str | Messages) -> pb.TokenizeRequest:
    """Of a text or a conversation. InvalidRequestError."""
    if isinstance(source, str):
        return pb.TokenizeRequest(text=_text("text", source))
    return pb.TokenizeRequest(conversation=pb.ChatConversation(messages=_messages(source)))


def abort_request(request_id: str) -> pb.AbortRequest:
    """InvalidRequestError."""
    return pb.AbortRequest(request_id=_text("request_id", request_id))


def piece(response: pb.GenerateResponse) -> Piece:
    """See `Piece`."""
    return Piece(
        request_id=response.request_id,
        index=response.index,
        text_delta=response.text_delta,
        token_ids=tuple(response.token_ids),
        logprobs=_logprobs(response.logprobs),
        finish_reason=FinishReason(response.finish_reason),
        matched_stop=response.matched_stop,
        usage=_usage(response.usage) if response.HasField("usage") else None,
    )


def answers(response: pb.GenerateOnceResponse) -> tuple[Answer, ...]:
    """All of one request."""
    return tuple(_answer(response.request_id, answer) for answer in response.answers)


def model_info(info: pb.GetModelInfoResponse) -> ModelInfo:
    """See `ModelInfo`."""
    return ModelInfo(
        name=info.name,
        architecture=info.architecture,
        dtype=info.dtype,
        vocab_size=info.vocab_size,
        max_context_tokens=info.max_context_tokens,
        max_output_tokens_default=info.max_output_tokens_default,
        eos_token_ids=tuple(info.eos_token_ids),
        has_chat_template=info.has_chat_template,
        version=info.version,
    )


def server_status(status: pb.GetStatusResponse) -> ServerStatus:
    """See `ServerStatus`."""
    return ServerStatus(
        num_waiting=status.num_waiting,
        num_prefilling=status.num_prefilling,
        num_decoding=status.num_decoding,
        num_requests_total=status.num_requests_total,
        num_output_tokens_total=status.num_output_tokens_total,
        prefill_connected=status.prefill_connected,
        decode_connected=status.decode_connected,
        memd_connected=status.memd_connected,
        requests_per_s=status.requests_per_s,
        tokens_per_s=status.tokens_per_s,
        replicas=tuple(map(_replica_status, status.replicas)),
    )


def _replica_status(replica: pb.ReplicaStatus) -> ReplicaStatus:
    return ReplicaStatus(
        name=replica.name,
        state=replica.state,
        is_ready=replica.ready,
        num_waiting=replica.num_waiting,
        num_prefilling=replica.num_prefilling,
        num_decoding=replica.num_decoding,
    )


def _token_ids(prompt: Sequence[int]) -> pb.TokenIds:
    try:
        return pb.TokenIds(ids=prompt)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError("token_ids", f"are not all token ids: {error}") from error


def _sampling(sampling: Mapping[str, SamplingValue]) -> pb.SamplingParams:
    """TypeError for a name that no parameter has; InvalidRequestError for a value that its field cannot hold."""
    known = pb.SamplingParams.DESCRIPTOR.fields_by_name
    message = pb.SamplingParams()
    for name, value in sampling.items():
        if name not in known:
            raise TypeError(f"no sampling parameter {name!r}; there are {', '.join(known)}")
        try:
            message.MergeFrom(pb.SamplingParams(**{name: _listed(name, value)}))
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"sampling.{name}", f"cannot be {value!r}: {error}") from error
    return message


def _listed(name: str, value: SamplingValue) -> Any:
    """One stop string may come alone."""
    return [value] if name == "stop" and isinstance(value, str) else value


def _text(field: str, text: str) -> str:
    """`text`, when it can be sent: protobuf's strings are UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(field, "has characters that UTF-8 does not have (lone surrogates)") from error
    return text


def _messages(messages: Messages) -> list[pb.ChatMessage]:
    return [
        pb.ChatMessage(
            role=_text(f"messages[{number}].role", message.get("role", "")),
            content=_text(f"messages[{number}].content", message.get("content", "")),
        )
        for number, message in enumerate(messages)
    ]


def _answer(request_id: str, answer: pb.Answer) -> Answer:
    return Answer(
        request_id=request_id,
        index=answer.index,
        text=answer.text,
        token_ids=tuple(answer.token_ids),
        logprobs=_logprobs(answer.logprobs),
        finish_reason=FinishReason(answer.finish_reason),
        matched_stop=answer.matched_stop,
        usage=_usage(answer.usage),
    )


def _usage(usage: pb.Usage) -> Usage:
    return Usage(
        num_prompt_tokens=usage.num_prompt_tokens,
        num_output_tokens=usage.num_output_tokens,
        num_cached_tokens=usage.num_cached_tokens,
        num_approximate_tokens=usage.num_approximate_tokens,
        segments=tuple(map(_segment_usage, usage.segments)),
        queue_ms=usage.queue_ms,
        num_refreshed_tokens=usage.num_refreshed_tokens,
    )


def _segment_usage(segment: pb.SegmentUsage) -> SegmentUsage:
    return SegmentUsage(segment.start, segment.end, segment.num_exact, segment.num_approximate, segment.num_computed)


def _reuse(reuse: Reuse) -> pb.Reuse:
    segments = [_segment(f"reuse.segments[{number}]", segment) for number, segment in enumerate(reuse.segments)]
    return pb.Reuse(ratio=_ratio(reuse.ratio), segments=segments)


def _priority(priority: int) -> int:
    try:
        return pb.GenerateRequest(priority=priority).priority
    except (TypeError, ValueError) as error:
        raise InvalidRequestError("priority", f"cannot be {priority!r}: {error}") from error


def _ratio(ratio: float | None) -> float | None:
    try:
        pb.Reuse(ratio=ratio)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError("reuse.ratio", f"cannot be {ratio!r}: {error}") from error
    return ratio


def _segment(field: str, segment: Span | str) -> pb.Segment:
    if isinstance(segment, str):
        return pb.Segment(text=_text(f"{field}.text", segment))
    try:
        return pb.Segment(tokens=common.Span(start=segment.start, end=segment.end))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{field}.tokens", f"cannot be {segment}: {error}") from error


def _logprobs(logprobs: Sequence[pb.TokenLogprobs]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            entry.token_id, entry.logprob, tuple(TopLogprob(best.token_id, best.logprob) for best in entry.top)
        )
        for entry in logprobs
    )

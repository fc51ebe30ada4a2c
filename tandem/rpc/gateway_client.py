"""The client API over gRPC, synchronous: values in, values out, the errors of `tandem.errors` raised."""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from tandem.errors import InvalidRequestError
from tandem.rpc.names import SERVICE_NAMES
from tandem.rpc.status import error_from_rpc
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc
from tandem.types import FinishReason, TopLogprob

SamplingValue = bool | int | float | str | Sequence[str] | Sequence[int] | Mapping[int, float] | None
Messages = Sequence[Mapping[str, str]]

# Streams are not tried again: a part of the answer may have come already.
_UNARY_METHODS = ("GenerateOnce", "Tokenize", "GetModelInfo", "Abort", "GetStatus")
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE_NAMES["gateway"], "method": method} for method in _UNARY_METHODS],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_CHANNEL_OPTIONS = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one answer, in tokens."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int  # prompt tokens whose KV was reused


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was drawn, and the best candidates in its place, best first."""

    token_id: int
    logprob: float
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one answer. The last has a `finish_reason` other than NONE, and a `usage`."""

    request_id: str
    index: int  # which of the n answers
    text_delta: str  # follows the text of this answer's earlier pieces
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]  # one a token, when asked for
    finish_reason: FinishReason
    matched_stop: str  # the stop string or token id that ended it
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer."""

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    matched_stop: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that is served."""

    name: str
    architecture: str
    dtype: str
    vocab_size: int
    max_context_tokens: int  # prompt and answer together
    max_output_tokens_default: int
    eos_token_ids: tuple[int, ...]
    has_chat_template: bool
    version: str  # of the server


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The gateway at one moment: sequences by where they are, totals since its start, rates over 10 s."""

    num_waiting: int
    num_prefilling: int
    num_decoding: int
    num_requests_total: int
    num_output_tokens_total: int
    prefill_connected: bool
    decode_connected: bool
    memd_connected: bool
    requests_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What every generating call has beside its prompt. An empty `request_id` is the server's to draw."""

    sampling: Mapping[str, SamplingValue]
    request_id: str = ""
    priority: int = 0
    cache_salt: str = ""
    timeout_s: float | None = None


Prompt = str | Sequence[int]
_Result = TypeVar("_Result")


class GatewayClient:
    """A connection to a gateway; safe to share between threads. `close` it."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = pb_grpc.GatewayServiceStub(self._channel)

    def close(self) -> None:
        """Ends the connection and every call on it."""
        self._channel.close()

    def generate(self, prompt: Prompt, options: CallOptions) -> Generator[Piece, None, None]:
        """Pieces of all answers as they come. Closing the generator cancels the request."""
        request = _generate_request(prompt, options)
        call = self._stub.Generate(request, timeout=options.timeout_s)
        return _stream(call, _piece)

    def generate_once(self, prompt: Prompt, options: CallOptions) -> tuple[Answer, ...]:
        """All answers, whole, by index."""
        request = pb.GenerateOnceRequest(request=_generate_request(prompt, options))
        response = _call(lambda: self._stub.GenerateOnce(request, timeout=options.timeout_s))
        return tuple(_answer(response.request_id, answer) for answer in response.answers)

    def chat(self, messages: Messages, options: CallOptions) -> Generator[Piece, None, None]:
        """As `generate`, for a conversation."""
        request = pb.ChatRequest(
            request_id=_text("request_id", options.request_id),
            messages=_messages(messages),
            sampling=_sampling(options.sampling),
            priority=options.priority,
            cache_salt=_text("cache_salt", options.cache_salt),
        )
        call = self._stub.Chat(request, timeout=options.timeout_s)
        return _stream(call, lambda response: _piece(response.piece))

    def tokenize(self, source: str | Messages, timeout_s: float | None) -> tuple[int, ...]:
        """The prompt that a text or a conversation becomes."""
        if isinstance(source, str):
            request = pb.TokenizeRequest(text=_text("text", source))
        else:
            request = pb.TokenizeRequest(conversation=pb.ChatConversation(messages=_messages(source)))
        return tuple(_call(lambda: self._stub.Tokenize(request, timeout=timeout_s)).token_ids)

    def model_info(self, timeout_s: float | None) -> ModelInfo:
        """See `ModelInfo`."""
        info = _call(lambda: self._stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=timeout_s))
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

    def abort(self, request_id: str, timeout_s: float | None) -> None:
        """NotFoundError when it is not running."""
        request = pb.AbortRequest(request_id=_text("request_id", request_id))
        _call(lambda: self._stub.Abort(request, timeout=timeout_s))

    def status(self, timeout_s: float | None) -> ServerStatus:
        """See `ServerStatus`."""
        status = _call(lambda: self._stub.GetStatus(pb.GetStatusRequest(), timeout=timeout_s))
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
        )


def _call(perform: Callable[[], _Result]) -> _Result:
    try:
        return perform()
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error


def _stream(call: Any, convert: Callable[[Any], Piece]) -> Generator[Piece, None, None]:
    try:
        for response in call:
            yield convert(response)
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error
    finally:
        call.cancel()


def _generate_request(prompt: Prompt, options: CallOptions) -> pb.GenerateRequest:
    request = pb.GenerateRequest(
        request_id=_text("request_id", options.request_id),
        sampling=_sampling(options.sampling),
        priority=options.priority,
        cache_salt=_text("cache_salt", options.cache_salt),
    )
    if isinstance(prompt, str):
        request.text = _text("text", prompt)
    else:
        request.token_ids.CopyFrom(_token_ids(prompt))
    return request


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


def _piece(response: pb.GenerateResponse) -> Piece:
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
    return Usage(usage.num_prompt_tokens, usage.num_output_tokens, usage.num_cached_tokens)


def _logprobs(logprobs: Sequence[pb.TokenLogprobs]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            entry.token_id, entry.logprob, tuple(TopLogprob(best.token_id, best.logprob) for best in entry.top)
        )
        for entry in logprobs
    )

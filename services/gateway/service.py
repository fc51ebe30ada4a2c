"""tandem.gateway.v1 as the frontend's calls: translates, and decides nothing."""
# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations  # grpc's generic types are so in its stub files only

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from services.gateway.chat import ChatMessage
from services.gateway.frontend import Call, Frontend, no_prompt
from services.gateway.output import Piece, SegmentUsage, Usage, merged
from services.gateway.requests import Request
from services.gateway.resumption import Origin, Resume, ResumedAnswer
from services.gateway.reuse import ReuseFields
from services.gateway.status import ReplicaStatus, StatusView
from services.gateway.tenants import authorization_of
from services.gateway.validation import SamplingFields
from tandem import __version__
from tandem.rpc.stubs.common.v1 import common_pb2
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1.gateway_pb2_grpc import (
    GatewayServiceServicer,
    add_GatewayServiceServicer_to_server,
)
from tandem.types import FinishReason, Span, TokenLogprobs

SERVICE_NAME = str(pb.DESCRIPTOR.services_by_name["GatewayService"].full_name)


if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class GatewayServicer(GatewayServiceServicer):
    """The client API. Errors are raised as they are: the server's interceptor maps them."""

    def __init__(self, frontend: Frontend, status: StatusView) -> None:
        self._frontend = frontend
        self._status = status

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        """Streams the answers' pieces, mixed."""
        running = await self._generate(request, context)
        origin: Origin | None = running.arrival.origin
        with self._attended(running, context):
            while (piece := await running.output.get()) is not None:
                yield piece_to_proto(running.request_id, piece, origin)
                origin = None

    async def GenerateOnce(self, request: pb.GenerateOnceRequest, context: Context) -> pb.GenerateOnceResponse:
        """Answers when every answer is complete."""
        running = await self._generate(request.request, context)
        answers: dict[int, list[Piece]] = {}
        with self._attended(running, context):
            while (piece := await running.output.get()) is not None:
                answers.setdefault(piece.index, []).append(piece)
        whole = [answer_to_proto(merged(answers[index])) for index in sorted(answers)]
        return pb.GenerateOnceResponse(request_id=running.request_id, answers=whole)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.ChatResponse]:
        """As Generate, on a rendered conversation."""
        call = self._call(request, context)
        running = await self._frontend.chat(call, _messages(request.messages))
        origin: Origin | None = running.arrival.origin
        with self._attended(running, context):
            while (piece := await running.output.get()) is not None:
                yield pb.ChatResponse(piece=piece_to_proto(running.request_id, piece, origin))
                origin = None

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Of a text or a conversation."""
        self._caller(context)
        match request.WhichOneof("input"):
            case "text":
                ids = await self._frontend.tokenize_text(request.text)
            case "conversation":
                ids = await self._frontend.tokenize_chat(_messages(request.conversation.messages))
            case _:
                raise no_prompt("input", "text or conversation")
        return pb.TokenizeResponse(token_ids=ids)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        """Of the one model that is served."""
        self._caller(context)
        info = self._frontend.model_info()
        return pb.GetModelInfoResponse(
            name=info.name,
            architecture=info.architecture,
            dtype=info.dtype,
            vocab_size=info.vocab_size,
            max_context_tokens=info.max_context_tokens,
            max_output_tokens_default=info.max_output_tokens_default,
            eos_token_ids=info.eos_token_ids,
            has_chat_template=info.has_chat_template,
            version=__version__,
        )

    async def GetCacheKeys(self, request: pb.GetCacheKeysRequest, context: Context) -> pb.GetCacheKeysResponse:
        """For operators."""
        call = Call(cache_salt=request.cache_salt, tenant=self._caller(context, request.tenant))
        where = self._frontend.cache_keys(request.token_ids.ids, call)
        return pb.GetCacheKeysResponse(namespace=where.namespace, keys=where.keys)

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        """By any of its tenant's callers who knows the request_id."""
        self._frontend.abort(request.request_id, self._caller(context))
        return pb.AbortResponse()

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        """Now, of all tenants together."""
        self._caller(context)
        status = self._status.now()
        return pb.GetStatusResponse(
            num_waiting=status.load.num_waiting,
            num_prefilling=status.load.num_prefilling,
            num_decoding=status.load.num_decoding,
            num_requests_total=status.num_requests_total,
            num_output_tokens_total=status.num_output_tokens_total,
            prefill_connected=status.prefill_connected,
            decode_connected=status.decode_connected,
            memd_connected=status.memd_connected,
            requests_per_s=status.requests_per_s,
            tokens_per_s=status.tokens_per_s,
            replicas=map(_replica_status, status.replicas),
        )

    async def _generate(self, request: pb.GenerateRequest, context: Context) -> Request:
        call = self._call(request, context)
        match request.WhichOneof("prompt"):
            case "text":
                return await self._frontend.generate_text(call, request.text)
            case "token_ids":
                return await self._frontend.generate_ids(call, request.token_ids.ids)
            case _:
                raise no_prompt("prompt", "text or token_ids")

    def _caller(self, context: Context, tenant: str = "") -> str:
        """The tenant, or the one that is named, if the caller may. UnauthenticatedError, ConfigError."""
        return self._frontend.caller(authorization_of(context.invocation_metadata()), context.peer(), tenant)

    def _call(self, request: pb.GenerateRequest | pb.ChatRequest, context: Context) -> Call:
        return Call(
            request_id=request.request_id,
            sampling=fields_from_proto(request.sampling),
            priority=request.priority,
            cache_salt=request.cache_salt,
            tenant=self._caller(context),
            remaining_s=context.time_remaining(),
            resume=resume_from_proto(request.resume) if request.HasField("resume") else None,
            reuse=reuse_from_proto(request.reuse) if request.HasField("reuse") else None,
        )

    @contextmanager
    def _attended(self, running: Request, context: Context) -> Iterator[None]:
        """A call that ends before the answers do cancels the request, also one that is stuck in a write."""
        on_end: Any = lambda _context: self._frontend.cancel(running)  # noqa: E731 - grpc's stubs lack its type
        context.add_done_callback(on_end)
        try:
            yield
        finally:
            self._frontend.cancel(running)


def add_to_server(frontend: Frontend, status: StatusView, server: grpc.aio.Server) -> None:
    """Serves the API on `server`."""
    add_GatewayServiceServicer_to_server(GatewayServicer(frontend, status), server)


def piece_to_proto(request_id: str, piece: Piece, origin: Origin | None = None) -> pb.GenerateResponse:
    """See `Piece`. The first of a stream has the request's origin. What most pieces lack is not touched in them."""
    message = pb.GenerateResponse()
    message.request_id = request_id
    message.index = piece.index
    message.text_delta = piece.text_delta
    message.token_ids.extend(piece.token_ids)
    if piece.logprobs:
        message.logprobs.extend(_logprobs(piece))
    if origin is not None:
        message.origin.CopyFrom(_origin_to_proto(origin))
    if piece.finish_reason is not FinishReason.NONE:
        message.finish_reason = common_pb2.FinishReason.ValueType(piece.finish_reason)
        message.matched_stop = piece.matched_stop
    if piece.usage is not None:
        message.usage.CopyFrom(_usage(piece.usage))
    return message


def answer_to_proto(piece: Piece) -> pb.Answer:
    """A whole answer."""
    return pb.Answer(
        index=piece.index,
        text=piece.text_delta,
        token_ids=piece.token_ids,
        logprobs=_logprobs(piece),
        finish_reason=common_pb2.FinishReason.ValueType(piece.finish_reason),
        matched_stop=piece.matched_stop,
        usage=None if piece.usage is None else _usage(piece.usage),
    )


def fields_from_proto(message: pb.SamplingParams) -> SamplingFields:
    """Set fields as they are, unset ones as None."""
    optional: dict[str, Any] = {field.name: value for field, value in message.ListFields() if field.has_presence}
    return SamplingFields(
        **optional,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        logit_bias=dict(message.logit_bias),
    )


def resume_from_proto(message: pb.Resume) -> Resume:
    """See `Resume`."""
    answers = tuple(ResumedAnswer(answer.index, tuple(answer.token_ids), answer.finished) for answer in message.answers)
    origin = message.origin
    known = Origin(origin.seed, origin.arrival_unix_ns, origin.model_digest) if message.HasField("origin") else None
    return Resume(known, answers)


def reuse_from_proto(message: pb.Reuse) -> ReuseFields:
    """See `ReuseFields`."""
    segments = tuple(_segment_from_proto(segment) for segment in message.segments)
    return ReuseFields(message.ratio if message.HasField("ratio") else None, segments)


def _segment_from_proto(message: pb.Segment) -> Span | str | None:
    match message.WhichOneof("where"):
        case "tokens":
            return Span(message.tokens.start, message.tokens.end)
        case "text":
            return message.text
        case _:
            return None


def _origin_to_proto(origin: Origin) -> pb.Origin:
    return pb.Origin(seed=origin.seed, arrival_unix_ns=origin.arrival_unix_ns, model_digest=origin.model_digest)


def _messages(messages: Sequence[pb.ChatMessage]) -> list[ChatMessage]:
    return [ChatMessage(message.role, message.content) for message in messages]


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        num_prompt_tokens=usage.num_prompt_tokens,
        num_output_tokens=usage.num_output_tokens,
        num_cached_tokens=usage.num_cached_tokens,
        num_approximate_tokens=usage.num_approximate_tokens,
        segments=[_segment_usage(segment) for segment in usage.segments],
        queue_ms=usage.queue_ms,
        num_refreshed_tokens=usage.num_refreshed_tokens,
    )


def _segment_usage(segment: SegmentUsage) -> pb.SegmentUsage:
    outcome = segment.outcome
    return pb.SegmentUsage(
        start=segment.span.start,
        end=segment.span.end,
        num_exact=outcome.num_exact,
        num_approximate=outcome.num_approximate,
        num_computed=outcome.num_computed,
    )


def _replica_status(replica: ReplicaStatus) -> pb.ReplicaStatus:
    return pb.ReplicaStatus(
        name=replica.name,
        state=replica.state,
        ready=replica.is_ready,
        num_waiting=replica.load.num_waiting,
        num_prefilling=replica.load.num_prefilling,
        num_decoding=replica.load.num_decoding,
    )


def _logprobs(piece: Piece) -> list[pb.TokenLogprobs]:
    return [_token_logprobs(*pair) for pair in zip(piece.token_ids, piece.logprobs, strict=bool(piece.logprobs))]


def _token_logprobs(token_id: int, logprobs: TokenLogprobs) -> pb.TokenLogprobs:
    top = [common_pb2.TopLogprob(token_id=best.token_id, logprob=best.logprob) for best in logprobs.top]
    return pb.TokenLogprobs(token_id=token_id, logprob=logprobs.logprob, top=top)

"""Between the protos of the phases and `tandem.types`; each pair of functions is the other's inverse."""

from collections.abc import Iterable, Iterator

from tandem.rpc.stubs.common.v1 import common_pb2 as common
from tandem.rpc.stubs.decode.v1 import decode_pb2 as decode
from tandem.rpc.stubs.prefill.v1 import prefill_pb2 as prefill
from tandem.types import (
    AbortSequence,
    ContentKind,
    DecodeResult,
    DropReason,
    FinishReason,
    PhaseCommand,
    Prefilled,
    PrefillResult,
    SamplingSpec,
    SegmentOutcome,
    SegmentReuse,
    SequenceDropped,
    SequenceOutput,
    SequenceSpec,
    Span,
    StopSpec,
    Submit,
    TokenLogprobs,
    TopLogprob,
)


def sampling_from_proto(message: common.SamplingSpec) -> SamplingSpec:
    """See `SamplingSpec`."""
    return SamplingSpec(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        seed=message.seed,
        logit_bias=dict(message.logit_bias),
        logprobs=message.logprobs,
        num_top_logprobs=message.num_top_logprobs,
    )


def stop_from_proto(message: common.StopSpec) -> StopSpec:
    """See `StopSpec`."""
    return StopSpec(message.max_tokens, message.min_tokens, tuple(message.stop_token_ids))


def sequence_from_proto(message: common.SequenceSpec) -> SequenceSpec:
    """See `SequenceSpec`."""
    return SequenceSpec(
        lease_id=message.lease_id,
        request_id=message.request_id,
        token_ids=tuple(message.token_ids),
        num_prompt_tokens=message.num_prompt_tokens,
        sampling=sampling_from_proto(message.sampling),
        stop=stop_from_proto(message.stop),
        priority=message.priority,
        arrival_unix_ns=message.arrival_unix_ns,
        cache_namespace=message.cache_namespace,
        reuse=_reuse_from_proto(message.reuse) if message.HasField("reuse") else None,
        num_publishable_tokens=_publishable(message),
        content_kind=ContentKind(message.content_kind),
        approximate=_spans_from_proto(message.approximate),
        domain=message.domain,
    )


def command_to_prefill(command: PhaseCommand) -> prefill.RunRequest:
    """A command on prefill's stream."""
    if isinstance(command, AbortSequence):
        return prefill.RunRequest(abort_lease_id=command.lease_id)
    request = prefill.RunRequest()
    _fill_sequence(request.submit, command.sequence)
    return request


def command_to_decode(command: PhaseCommand) -> decode.RunRequest:
    """A command on decode's stream."""
    if isinstance(command, AbortSequence):
        return decode.RunRequest(abort_lease_id=command.lease_id)
    request = decode.RunRequest()
    _fill_sequence(request.submit, command.sequence)
    return request


def command_from_proto(message: prefill.RunRequest | decode.RunRequest) -> PhaseCommand | None:
    """A command of either stream; None when it holds none (of a newer version's kind)."""
    match message.WhichOneof("command"):
        case "submit":
            return Submit(sequence_from_proto(message.submit))
        case "abort_lease_id":
            return AbortSequence(message.abort_lease_id)
        case _:
            return None


def commands_from_proto(message: prefill.RunRequest | decode.RunRequest) -> Iterator[PhaseCommand | None]:
    """All commands of a message of either stream, in order; each as of `command_from_proto`."""
    yield command_from_proto(message)
    for following in message.more:
        yield command_from_proto(following)


def output_to_proto(output: SequenceOutput) -> common.SequenceOutput:
    """See `SequenceOutput`."""
    message = common.SequenceOutput(lease_id=output.lease_id, token_id=output.token_id)
    if output.finish_reason is not FinishReason.NONE:
        message.finish_reason = common.FinishReason.ValueType(output.finish_reason)
    if output.logprobs is not None:
        message.logprobs.logprob = output.logprobs.logprob
        message.logprobs.top.extend(
            common.TopLogprob(token_id=top.token_id, logprob=top.logprob) for top in output.logprobs.top
        )
    if output.num_refreshed:
        message.num_refreshed = output.num_refreshed
    return message


def output_from_proto(message: common.SequenceOutput) -> SequenceOutput:
    """See `SequenceOutput`."""
    logprobs = None
    if message.HasField("logprobs"):
        top = tuple(TopLogprob(entry.token_id, entry.logprob) for entry in message.logprobs.top)
        logprobs = TokenLogprobs(message.logprobs.logprob, top)
    reason = FinishReason(message.finish_reason) if message.finish_reason else FinishReason.NONE
    return SequenceOutput(message.lease_id, message.token_id, logprobs, reason, message.num_refreshed)


def dropped_to_proto(dropped: SequenceDropped) -> common.SequenceDropped:
    """See `SequenceDropped`."""
    return common.SequenceDropped(
        lease_id=dropped.lease_id,
        reason=common.DropReason.ValueType(dropped.reason),
        message=dropped.message,
    )


def dropped_from_proto(message: common.SequenceDropped) -> SequenceDropped:
    """See `SequenceDropped`."""
    return SequenceDropped(message.lease_id, DropReason(message.reason), message.message)


def prefill_result_to_proto(result: PrefillResult) -> prefill.RunResponse:
    """See `PrefillResult`."""
    return prefill.RunResponse(
        prefilled=[_prefilled_to_proto(entry) for entry in result.prefilled],
        dropped=[dropped_to_proto(entry) for entry in result.dropped],
        takes_more=True,
    )


def prefill_result_from_proto(message: prefill.RunResponse) -> PrefillResult:
    """See `PrefillResult`."""
    return PrefillResult(
        prefilled=tuple(_prefilled_from_proto(entry) for entry in message.prefilled),
        dropped=tuple(dropped_from_proto(entry) for entry in message.dropped),
    )


def decode_result_to_proto(result: DecodeResult) -> decode.RunResponse:
    """See `DecodeResult`."""
    return decode.RunResponse(
        outputs=[output_to_proto(entry) for entry in result.outputs],
        dropped=[dropped_to_proto(entry) for entry in result.dropped],
        takes_more=True,
    )


def decode_result_from_proto(message: decode.RunResponse) -> DecodeResult:
    """See `DecodeResult`."""
    return DecodeResult(
        outputs=tuple(output_from_proto(entry) for entry in message.outputs),
        dropped=tuple(dropped_from_proto(entry) for entry in message.dropped),
    )


def _fill_sequence(message: common.SequenceSpec, spec: SequenceSpec) -> None:
    """In place, as the two below: made apart and copied in, a sequence's messages take three times as long."""
    message.lease_id = spec.lease_id
    message.request_id = spec.request_id
    message.token_ids.extend(spec.token_ids)
    message.num_prompt_tokens = spec.num_prompt_tokens
    _fill_sampling(message.sampling, spec.sampling)
    _fill_stop(message.stop, spec.stop)
    message.priority = spec.priority
    message.arrival_unix_ns = spec.arrival_unix_ns
    message.cache_namespace = spec.cache_namespace
    if spec.reuse is not None:
        message.reuse.CopyFrom(_reuse_to_proto(spec.reuse))
    if spec.num_publishable_tokens is not None:
        message.num_publishable_tokens = spec.num_publishable_tokens
    message.content_kind = common.ContentKind.ValueType(spec.content_kind)
    if spec.approximate:
        message.approximate.extend(_spans_to_proto(spec.approximate))
    message.domain = spec.domain


def _fill_sampling(message: common.SamplingSpec, spec: SamplingSpec) -> None:
    message.temperature = spec.temperature
    message.top_p = spec.top_p
    message.top_k = spec.top_k
    message.min_p = spec.min_p
    message.repetition_penalty = spec.repetition_penalty
    message.presence_penalty = spec.presence_penalty
    message.frequency_penalty = spec.frequency_penalty
    message.seed = spec.seed
    if spec.logit_bias:
        message.logit_bias.update(spec.logit_bias)
    message.logprobs = spec.logprobs
    message.num_top_logprobs = spec.num_top_logprobs


def _fill_stop(message: common.StopSpec, spec: StopSpec) -> None:
    message.max_tokens = spec.max_tokens
    message.min_tokens = spec.min_tokens
    message.stop_token_ids.extend(spec.stop_token_ids)


def _prefilled_to_proto(entry: Prefilled) -> prefill.Prefilled:
    return prefill.Prefilled(
        output=output_to_proto(entry.output),
        wait_ms=entry.wait_ms,
        compute_ms=entry.compute_ms,
        num_cached_tokens=entry.num_cached_tokens,
        segments=[
            prefill.SegmentOutcome(
                num_exact=outcome.num_exact,
                num_approximate=outcome.num_approximate,
                num_computed=outcome.num_computed,
                found=outcome.found,
            )
            for outcome in entry.segments
        ],
        num_publishable_tokens=entry.num_publishable_tokens,
        approximate=_spans_to_proto(entry.approximate),
    )


def _prefilled_from_proto(message: prefill.Prefilled) -> Prefilled:
    return Prefilled(
        output=output_from_proto(message.output),
        wait_ms=message.wait_ms,
        compute_ms=message.compute_ms,
        num_cached_tokens=message.num_cached_tokens,
        segments=tuple(
            SegmentOutcome(outcome.num_exact, outcome.num_approximate, outcome.num_computed, outcome.found)
            for outcome in message.segments
        ),
        num_publishable_tokens=_publishable(message),
        approximate=_spans_from_proto(message.approximate),
    )


def _reuse_to_proto(reuse: SegmentReuse) -> common.SegmentReuse:
    return common.SegmentReuse(
        ratio=reuse.ratio,
        spans=_spans_to_proto(reuse.spans),
        namespace=reuse.namespace,
        first_token_id=reuse.first_token_id,
    )


def _reuse_from_proto(message: common.SegmentReuse) -> SegmentReuse:
    return SegmentReuse(message.ratio, _spans_from_proto(message.spans), message.namespace, message.first_token_id)


def _spans_to_proto(spans: Iterable[Span]) -> list[common.Span]:
    return [common.Span(start=span.start, end=span.end) for span in spans]


def _spans_from_proto(messages: Iterable[common.Span]) -> tuple[Span, ...]:
    return tuple(Span(message.start, message.end) for message in messages)


def _publishable(message: common.SequenceSpec | prefill.Prefilled) -> int | None:
    return message.num_publishable_tokens if message.HasField("num_publishable_tokens") else None

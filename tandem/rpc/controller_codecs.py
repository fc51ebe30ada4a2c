"""The controller's messages to values and back. What a peer may get wrong raises InvalidRequestError."""

from collections.abc import Iterator, Sequence

from tandem.errors import InvalidRequestError
from tandem.partition.observations import LatencyStatistics, PhaseStatistics, RequestStatistics
from tandem.partition.planner import AdmissionAdvice
from tandem.partition.slo import Slo
from tandem.partition.status import ControllerStatus, Decision, PhaseHello, PhaseStatus, ShareApplied
from tandem.rpc.stubs.controller.v1 import controller_pb2 as pb
from tandem.types import Phase, RequestClass, RequestObservation, Split, StepStatistics


def split_to_proto(split: Split) -> pb.Split:
    """Both shares."""
    return pb.Split(prefill_percent=split.prefill_percent, decode_percent=split.decode_percent)


def split_from_proto(message: pb.Split) -> Split:
    """Both shares, unchecked."""
    return Split(message.prefill_percent, message.decode_percent)


def hello_to_proto(hello: PhaseHello) -> pb.PhaseHello:
    """Who opens the link."""
    return pb.PhaseHello(
        phase=hello.phase,
        pid=hello.pid,
        partition_backend=hello.partition_backend,
        splits=[split_to_proto(split) for split in hello.splits],
        in_force=split_to_proto(hello.in_force) if hello.in_force else None,
    )


def hello_from_proto(message: pb.PhaseHello) -> PhaseHello:
    """InvalidRequestError for a phase that does not exist."""
    if message.phase not in list(Phase):
        raise InvalidRequestError("hello.phase", f"got {message.phase!r}; expected one of {', '.join(Phase)}")
    splits = tuple(split_from_proto(split) for split in message.splits)
    in_force = split_from_proto(message.in_force) if message.HasField("in_force") else None
    return PhaseHello(Phase(message.phase), message.pid, message.partition_backend, splits, in_force)


def step_to_proto(step: StepStatistics) -> pb.StepStatistics:
    """One step of a phase."""
    return pb.StepStatistics(
        duration_ms=step.duration_ms,
        num_sequences=step.num_sequences,
        num_tokens=step.num_tokens,
        num_context_tokens=step.num_context_tokens,
        num_waiting=step.num_waiting,
        unix_ns=step.unix_ns,
        num_backlog_tokens=step.num_backlog_tokens,
    )


def step_from_proto(message: pb.StepStatistics) -> StepStatistics:
    """One step of a phase."""
    return StepStatistics(
        duration_ms=message.duration_ms,
        num_sequences=message.num_sequences,
        num_tokens=message.num_tokens,
        num_context_tokens=message.num_context_tokens,
        num_waiting=message.num_waiting,
        unix_ns=message.unix_ns,
        num_backlog_tokens=message.num_backlog_tokens,
    )


def applied_to_proto(applied: ShareApplied) -> pb.ShareApplied:
    """A phase's answer to a decision."""
    return pb.ShareApplied(
        decision_id=applied.decision_id,
        restart_required=applied.restart_required,
        detail=applied.detail,
        apply_ms=applied.apply_ms,
    )


def applied_from_proto(message: pb.ShareApplied) -> ShareApplied:
    """A phase's answer to a decision."""
    return ShareApplied(message.decision_id, message.restart_required, message.detail, message.apply_ms)


def decision_to_proto(decision: Decision) -> pb.LinkResponse:
    """What a phase is told of a decision."""
    return pb.LinkResponse(decision_id=decision.decision_id, split=split_to_proto(decision.split))


def observation_to_proto(observation: RequestObservation) -> pb.ObserveRequest:
    """One finished request."""
    return pb.ObserveRequest(
        request_id=observation.request_id,
        ttft_ms=observation.ttft_ms,
        ttft_wait_ms=observation.ttft_wait_ms,
        ttft_compute_ms=observation.ttft_compute_ms,
        tpot_ms=observation.tpot_ms,
        num_prompt_tokens=observation.num_prompt_tokens,
        num_output_tokens=observation.num_output_tokens,
        num_cached_tokens=observation.num_cached_tokens,
        ok=observation.ok,
        unix_ns=observation.unix_ns,
        num_waiting=observation.num_waiting,
        request_class=observation.request_class,
    )


def observations_to_proto(observations: Sequence[RequestObservation]) -> pb.ObserveRequest:
    """One message of all of them; there is at least one."""
    first, *others = map(observation_to_proto, observations)
    first.more.extend(others)
    return first


def observations_from_proto(message: pb.ObserveRequest) -> Iterator[RequestObservation]:
    """See `observations_to_proto`."""
    yield observation_from_proto(message)
    yield from map(observation_from_proto, message.more)


def observation_from_proto(message: pb.ObserveRequest) -> RequestObservation:
    """One finished request; of a class that this version does not know it is interactive."""
    return RequestObservation(
        request_id=message.request_id,
        ttft_ms=message.ttft_ms,
        ttft_wait_ms=message.ttft_wait_ms,
        ttft_compute_ms=message.ttft_compute_ms,
        tpot_ms=message.tpot_ms,
        num_prompt_tokens=message.num_prompt_tokens,
        num_output_tokens=message.num_output_tokens,
        num_cached_tokens=message.num_cached_tokens,
        ok=message.ok,
        unix_ns=message.unix_ns,
        num_waiting=message.num_waiting,
        request_class=_class_from_proto(message.request_class),
    )


def _class_from_proto(name: str) -> RequestClass:
    return RequestClass(name) if name in list(RequestClass) else RequestClass.INTERACTIVE


def status_to_proto(status: ControllerStatus) -> pb.GetStatusResponse:
    """The whole status."""
    return pb.GetStatusResponse(
        split=split_to_proto(status.decision.split),
        decision_id=status.decision.decision_id,
        planner=status.planner,
        reason=status.decision.reason,
        phases=[_phase_to_proto(phase) for phase in status.phases],
        num_requests_observed=status.requests.num_observed_total,
        ttft_p50_ms=status.requests.ttft.p50_ms,
        ttft_p99_ms=status.requests.ttft.p99_ms,
        tpot_p50_ms=status.requests.tpot.p50_ms,
        tpot_p99_ms=status.requests.tpot.p99_ms,
        is_paused=status.is_paused,
        ttft_p90_ms=status.requests.ttft.p90_ms,
        tpot_p90_ms=status.requests.tpot.p90_ms,
        slo_ttft_ms=status.slo.ttft_ms,
        slo_tpot_ms=status.slo.tpot_ms,
        num_requests_in_window=status.requests.num_in_window,
        num_requests_attained=status.requests.num_attained,
        admission=advice_to_proto(status.admission) if status.admission else None,
    )


def status_from_proto(message: pb.GetStatusResponse) -> ControllerStatus:
    """The whole status; numbers of samples do not travel, nor of failures."""
    return ControllerStatus(
        decision=Decision(message.decision_id, split_from_proto(message.split), message.reason),
        planner=message.planner,
        phases=tuple(_phase_from_proto(phase) for phase in message.phases),
        requests=RequestStatistics(
            num_observed_total=message.num_requests_observed,
            ttft=LatencyStatistics(p50_ms=message.ttft_p50_ms, p99_ms=message.ttft_p99_ms, p90_ms=message.ttft_p90_ms),
            tpot=LatencyStatistics(p50_ms=message.tpot_p50_ms, p99_ms=message.tpot_p99_ms, p90_ms=message.tpot_p90_ms),
            num_in_window=message.num_requests_in_window,
            num_attained=message.num_requests_attained,
        ),
        is_paused=message.is_paused,
        slo=Slo(message.slo_ttft_ms, message.slo_tpot_ms),
        admission=advice_from_proto(message.admission) if message.HasField("admission") else None,
    )


def advice_to_proto(advice: AdmissionAdvice) -> pb.AdmissionAdvice:
    """How much of the load would fit."""
    return pb.AdmissionAdvice(admit_share=advice.admit_share, reason=advice.reason)


def advice_from_proto(message: pb.AdmissionAdvice) -> AdmissionAdvice:
    """How much of the load would fit."""
    return AdmissionAdvice(message.admit_share, message.reason)


def _phase_to_proto(status: PhaseStatus) -> pb.PhaseStatus:
    return pb.PhaseStatus(
        phase=status.phase,
        connected=status.connected,
        pid=status.pid,
        partition_backend=status.partition_backend,
        applied_decision_id=status.applied_decision_id,
        applied_detail=status.applied_detail,
        step_p50_ms=status.statistics.step.p50_ms,
        step_p99_ms=status.statistics.step.p99_ms,
        tokens_per_s=status.statistics.tokens_per_s,
    )


def _phase_from_proto(message: pb.PhaseStatus) -> PhaseStatus:
    return PhaseStatus(
        phase=Phase(message.phase),
        connected=message.connected,
        pid=message.pid,
        partition_backend=message.partition_backend,
        applied_decision_id=message.applied_decision_id,
        applied_detail=message.applied_detail,
        statistics=PhaseStatistics(
            step=LatencyStatistics(p50_ms=message.step_p50_ms, p99_ms=message.step_p99_ms),
            tokens_per_s=message.tokens_per_s,
        ),
    )

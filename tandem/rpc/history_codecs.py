"""The controller's decision records to messages and back."""

from tandem.partition.observations import LatencyStatistics, RequestStatistics
from tandem.partition.planner import Prediction
from tandem.partition.status import AppliedShare, Decision, DecisionRecord, ShareApplied
from tandem.rpc.controller_codecs import advice_from_proto, advice_to_proto, split_from_proto, split_to_proto
from tandem.rpc.stubs.controller.v1 import controller_pb2 as pb
from tandem.types import Phase


def record_to_proto(record: DecisionRecord) -> pb.DecisionRecord:
    """One decision with all that is known of it."""
    return pb.DecisionRecord(
        decision_id=record.decision.decision_id,
        split=split_to_proto(record.decision.split),
        reason=record.decision.reason,
        unix_ns=record.unix_ns,
        num_requests_seen=record.seen.num_observed_total,
        ttft_p50_ms=record.seen.ttft.p50_ms,
        ttft_p99_ms=record.seen.ttft.p99_ms,
        tpot_p50_ms=record.seen.tpot.p50_ms,
        tpot_p99_ms=record.seen.tpot.p99_ms,
        predicted=_prediction_to_proto(record.predicted) if record.predicted else None,
        applied=[_applied_to_proto(applied) for applied in record.applied],
        admission=advice_to_proto(record.admission) if record.admission else None,
    )


def record_from_proto(message: pb.DecisionRecord) -> DecisionRecord:
    """One decision; numbers of samples do not travel."""
    return DecisionRecord(
        decision=Decision(message.decision_id, split_from_proto(message.split), message.reason),
        unix_ns=message.unix_ns,
        seen=RequestStatistics(
            num_observed_total=message.num_requests_seen,
            ttft=LatencyStatistics(p50_ms=message.ttft_p50_ms, p99_ms=message.ttft_p99_ms),
            tpot=LatencyStatistics(p50_ms=message.tpot_p50_ms, p99_ms=message.tpot_p99_ms),
        ),
        predicted=_prediction_from_proto(message.predicted) if message.HasField("predicted") else None,
        applied=tuple(_applied_from_proto(message.decision_id, applied) for applied in message.applied),
        admission=advice_from_proto(message.admission) if message.HasField("admission") else None,
    )


def _prediction_to_proto(prediction: Prediction) -> pb.Prediction:
    return pb.Prediction(
        ttft_p90_ms=prediction.ttft_p90_ms, tpot_p90_ms=prediction.tpot_p90_ms, attainment=prediction.attainment
    )


def _prediction_from_proto(message: pb.Prediction) -> Prediction:
    return Prediction(message.ttft_p90_ms, message.tpot_p90_ms, message.attainment)


def _applied_to_proto(applied: AppliedShare) -> pb.AppliedShare:
    return pb.AppliedShare(
        phase=applied.phase,
        detail=applied.answer.detail,
        restart_required=applied.answer.restart_required,
        apply_ms=applied.answer.apply_ms,
        after_ms=applied.after_ms,
    )


def _applied_from_proto(decision_id: int, message: pb.AppliedShare) -> AppliedShare:
    answer = ShareApplied(decision_id, message.restart_required, message.detail, message.apply_ms)
    return AppliedShare(Phase(message.phase), answer, message.after_ms)

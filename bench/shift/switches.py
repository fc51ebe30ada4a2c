"""What clients saw of each change of the split: the controller's history beside the gaps between their tokens. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.load.metrics import distribution
from bench.load.records import RequestRecord
from tandem.partition.status import DecisionRecord

AFTER_S = 0.5  # once the last phase has answered: what a change still disturbs
BEFORE_S = 5.0  # of the same load, under the split before
NANO = 1e9
MS = 1e3


@dataclass(frozen=True, slots=True)
class PhaseApplied:
    """A phase's answer to a decision."""

    phase: str
    after_ms: float  # since the decision
    stood_ms: float  # its step loop, for the change


@dataclass(frozen=True, slots=True)
class GapsSeen:
    """Of a stretch of time: gaps between tokens of any request that end in it. Times are 0 of none."""

    num_gaps: int
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class SwitchSeen:
    """One switch. `around`: from the decision until soon after the last phase's answer."""

    at_s: float  # since the run's start
    prefill_percent: int
    decode_percent: int
    reason: str
    applied: tuple[PhaseApplied, ...]
    around: GapsSeen
    before: GapsSeen


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two arrivals of one request's tokens."""

    ended_s: float
    duration_ms: float


@dataclass(frozen=True, slots=True)
class Stalls:
    """The switches of a run, and the p99 of its gaps that none of them is near."""

    switches: tuple[SwitchSeen, ...]
    steady_gap_p99_ms: float


def gaps_of(records: Iterable[RequestRecord]) -> list[Gap]:
    """All of them, as `RequestRecord.gaps_ms` has them."""
    return [
        Gap(later, (later - earlier) * MS)
        for record in records
        for earlier, later in pairwise(sorted(set(record.token_times_s)))
    ]


def stalls(decisions: Sequence[DecisionRecord], records: Sequence[RequestRecord], started_unix_s: float) -> Stalls:
    """Of the decisions those that fell between the run's start and its last request's end."""
    ended_s = max((record.ended_s for record in records), default=0.0)
    gaps = gaps_of(records)
    dated = [(decision.unix_ns / NANO - started_unix_s, decision) for decision in decisions]
    inside = [(at_s, decision) for at_s, decision in dated if 0 <= at_s <= ended_s]
    spans = [(at_s, _settled_s(at_s, decision)) for at_s, decision in inside]
    steady = [gap for gap in gaps if not any(start_s <= gap.ended_s <= end_s for start_s, end_s in spans)]
    return Stalls(
        switches=tuple(_seen(at_s, decision, gaps) for at_s, decision in inside),
        steady_gap_p99_ms=_gaps_seen(steady).p99_ms,
    )


def _settled_s(at_s: float, decision: DecisionRecord) -> float:
    return at_s + max((each.after_ms for each in decision.applied), default=0.0) / MS + AFTER_S


def _seen(at_s: float, decision: DecisionRecord, gaps: Sequence[Gap]) -> SwitchSeen:
    split, settled_s = decision.decision.split, _settled_s(at_s, decision)
    return SwitchSeen(
        at_s=at_s,
        prefill_percent=split.prefill_percent,
        decode_percent=split.decode_percent,
        reason=decision.decision.reason,
        applied=tuple(PhaseApplied(each.phase, each.after_ms, each.answer.apply_ms) for each in decision.applied),
        around=_gaps_seen([gap for gap in gaps if at_s <= gap.ended_s <= settled_s]),
        before=_gaps_seen([gap for gap in gaps if at_s - BEFORE_S <= gap.ended_s < at_s]),
    )


def _gaps_seen(gaps: Sequence[Gap]) -> GapsSeen:
    durations_ms = [gap.duration_ms for gap in gaps]
    return GapsSeen(len(durations_ms), distribution(durations_ms).p99, max(durations_ms, default=0.0))

"""What the controller exchanges with phases and operators, as frozen values."""

from dataclasses import dataclass, field

from tandem.partition.observations import PhaseStatistics, RequestStatistics
from tandem.partition.planner import AdmissionAdvice, Prediction
from tandem.partition.slo import NOTHING_PROMISED, Slo
from tandem.types import Phase, Split


@dataclass(frozen=True, slots=True)
class Decision:
    """A split that is to be in force. `decision_id` grows; 0 is before the first."""

    decision_id: int
    split: Split
    reason: str


@dataclass(frozen=True, slots=True)
class PhaseHello:
    """Who opened a link."""

    phase: Phase
    pid: int
    partition_backend: str
    splits: tuple[Split, ...] = ()  # that the backend offers
    in_force: Split | None = None  # what the phase's process has applied already


@dataclass(frozen=True, slots=True)
class ShareApplied:
    """A phase's answer to a decision. `apply_ms`: how long its step loop stood for it."""

    decision_id: int
    restart_required: bool
    detail: str
    apply_ms: float


@dataclass(frozen=True, slots=True)
class PhaseStatus:
    """One phase as the controller knows it; what is gone keeps its last values and is not connected."""

    phase: Phase
    connected: bool = False
    pid: int = 0
    partition_backend: str = ""
    applied_decision_id: int = 0
    applied_detail: str = ""
    statistics: PhaseStatistics = field(default_factory=PhaseStatistics)


@dataclass(frozen=True, slots=True)
class ControllerStatus:
    """The split in force, and what it rests on."""

    decision: Decision
    planner: str
    phases: tuple[PhaseStatus, ...]
    requests: RequestStatistics
    is_paused: bool = False  # the planner, by hand
    slo: Slo = NOTHING_PROMISED.deployment  # of requests of no class of their own
    admission: AdmissionAdvice | None = None  # of the newest plan; None: all that comes can be served


@dataclass(frozen=True, slots=True)
class AppliedShare:
    """What a phase answered to a decision, and how long after it."""

    phase: Phase
    answer: ShareApplied
    after_ms: float


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision: what was seen, what was predicted, what came of it."""

    decision: Decision
    unix_ns: int
    seen: RequestStatistics
    predicted: Prediction | None = None
    applied: tuple[AppliedShare, ...] = ()
    admission: AdmissionAdvice | None = None

"""What is seen of one item."""

from dataclasses import dataclass
from enum import StrEnum

from bench.approx.cases import Case


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case. KL in nats of the full recompute's continuation, by position; `picked`: the likeliest choice."""

    case: Case
    kl: tuple[float, ...]
    agrees: tuple[bool, ...]  # with the likeliest next token
    picked: int
    num_computed: int
    ttft_ms: float


class Stage(StrEnum):
    """What is computed beside DHD's choice in prefill."""

    NOTHING = "nothing more"
    IN_PREFILL = "as many more in prefill"
    IN_DECODE = "refreshed in decode"


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """Over the continuation behind the first refresh."""

    stage: Stage
    kl: tuple[float, ...]
    agrees: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """`picked` by full recompute; the first choice is right."""

    name: str
    num_tokens: int
    num_reused: int
    picked: int
    full_ms: float
    build_ms: float  # of all its entries
    step_ms: float  # a decode step
    refresh_ms: float  # one refresh of the decode stage
    outcomes: tuple[Outcome, ...]
    stages: tuple[StageOutcome, ...]

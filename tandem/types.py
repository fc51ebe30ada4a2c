"""The frozen values that cross Tandem's boundaries. Start here.

A client's request becomes one or more *sequences* (one for each of its `n` answers). A sequence has a *lease* on KV
blocks in memd; `lease_id` names the sequence in every phase. Prefill answers with `Prefilled`, decode with one
`SequenceOutput` a step, and either may say `SequenceDropped` instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple


class Phase(StrEnum):
    """The two halves of serving a sequence."""

    PREFILL = "prefill"
    DECODE = "decode"


class FinishReason(IntEnum):
    """Why a sequence ended. The numbers are the proto's."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3


class DropReason(IntEnum):
    """Why a phase let a sequence go before its end. The numbers are the proto's."""

    ABORTED = 1
    PREEMPTED = 2
    LEASE_LOST = 3
    FAILED = 4
    DRAINING = 5


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How tokens are drawn; every field resolved (see ``common.proto`` for ranges)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: bool = False
    num_top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class StopSpec:
    """When a sequence ends. `max_tokens` and `min_tokens` count output from the prompt's end."""

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """Positions ``start .. end - 1`` of a prompt."""

    start: int
    end: int


class ContentKind(IntEnum):
    """What published KV is of. The numbers are the proto's."""

    PROMPT = 0  # and its answer
    SEGMENT = 1  # alone, behind the model's first token


@dataclass(frozen=True, slots=True)
class SegmentReuse:
    """KV of `spans` may be taken from entries under `namespace`: `first_token_id`, then the span's tokens.

    Of the reused tokens a share of `ratio` is computed nevertheless.
    """

    ratio: float
    spans: tuple[Span, ...]
    namespace: bytes
    first_token_id: int


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """A sequence as a phase receives it: ``token_ids[:num_prompt_tokens]`` is the prompt, the rest was emitted."""

    lease_id: int
    request_id: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    sampling: SamplingSpec
    stop: StopSpec
    priority: int = 0
    arrival_unix_ns: int = 0
    cache_namespace: bytes = b""  # among whose sequences KV is shared by contents; empty: with none
    reuse: SegmentReuse | None = None  # None: only exact KV is reused
    num_publishable_tokens: int | None = None  # behind them stands approximate KV, which has no key; None: nowhere
    content_kind: ContentKind = ContentKind.PROMPT
    approximate: tuple[Span, ...] = ()  # of the prompt, in nobody else's blocks: KV that decode may compute anew
    domain: bytes = b""  # whose KV it is where the namespace does not say; empty: nobody's

    @property
    def num_output_tokens(self) -> int:
        """Tokens emitted before this phase got the sequence."""
        return len(self.token_ids) - self.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One candidate token and its log probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The drawn token's log probability, and the best candidates', best first."""

    logprob: float
    top: tuple[TopLogprob, ...] = ()


class SequenceOutput(NamedTuple):
    """One token of one sequence; `finish_reason` is NONE while it goes on.

    One is made for each token, in two processes; a frozen dataclass takes more than twice as long to make.
    """

    lease_id: int
    token_id: int
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason = FinishReason.NONE
    num_refreshed: int = 0  # prompt tokens whose approximate KV was computed anew right before this one


@dataclass(frozen=True, slots=True)
class SequenceDropped:
    """The phase has stopped working on the sequence and will not write to its blocks any more."""

    lease_id: int
    reason: DropReason
    message: str = ""


@dataclass(frozen=True, slots=True)
class SegmentOutcome:
    """A span's tokens by where their KV came from; `found`: there was an entry of it."""

    num_exact: int
    num_approximate: int
    num_computed: int
    found: bool


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt's first token; its KV is sealed and decode may take the lease over.

    `segments` has one entry for each span of the sequence's `reuse`; decode is to publish no block beyond
    `num_publishable_tokens`, and may compute anew what is `approximate`.
    """

    output: SequenceOutput
    wait_ms: float
    compute_ms: float
    num_cached_tokens: int
    segments: tuple[SegmentOutcome, ...] = ()
    num_publishable_tokens: int | None = None
    approximate: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Submit:
    """Command to a phase: work on this sequence."""

    sequence: SequenceSpec


@dataclass(frozen=True, slots=True)
class AbortSequence:
    """Command to a phase: stop; answered by `SequenceDropped`, unless the sequence ended first."""

    lease_id: int


PhaseCommand = Submit | AbortSequence


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """What prefill says after a step (or between steps, of drops alone)."""

    prefilled: tuple[Prefilled, ...] = ()
    dropped: tuple[SequenceDropped, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """What decode says after a step: every running sequence's token in one value."""

    outputs: tuple[SequenceOutput, ...] = ()
    dropped: tuple[SequenceDropped, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A reference to a KV block; stale once the ledger's generation has moved on.

    `occupant` says whose KV the block may hold (see `tandem.kv.occupants`), of those that nobody's KV is sealed in.
    """

    block_id: int
    generation: int
    occupant: bytes = field(default=b"", compare=False)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must be equal for a phase and the storage to fit. An empty field makes no claim, and `version` never does.

    Releases whose layout is the same fit each other, so that services can be replaced one by one.
    """

    model_digest: str = ""
    dtype: str = ""
    kv_dtype: str = ""
    layout: str = ""
    block_size: int = 0
    num_blocks: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of the device in percent, each in (0, 100]; above 100 together the phases compete."""

    prefill_percent: int
    decode_percent: int

    def percent(self, phase: Phase) -> int:
        """One phase's share."""
        return self.prefill_percent if phase is Phase.PREFILL else self.decode_percent


class RequestClass(StrEnum):
    """Whose SLO a request has."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """One step of a phase, as the controller is told of it. `num_backlog_tokens`: of prompts, left to compute."""

    duration_ms: float
    num_sequences: int
    num_tokens: int
    num_context_tokens: int
    num_waiting: int
    unix_ns: int
    num_backlog_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestObservation:
    """One finished request, as the controller is told of it. `tpot_ms` is 0 with a single token."""

    request_id: str
    ttft_ms: float
    ttft_wait_ms: float
    ttft_compute_ms: float
    tpot_ms: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    ok: bool
    unix_ns: int
    num_waiting: int
    request_class: RequestClass = RequestClass.INTERACTIVE

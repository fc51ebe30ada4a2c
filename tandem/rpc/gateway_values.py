"""The client API in plain values: what a caller gives, and what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self
from uuid import uuid4

from tandem.types import FinishReason, Span, TopLogprob

SamplingValue = bool | int | float | str | Sequence[str] | Sequence[int] | Mapping[int, float] | None
Messages = Sequence[Mapping[str, str]]
Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Reuse:
    """Lets KV of parts of the prompt be reused wherever they stood before, so that the answer is approximate.

    Of the reused tokens a share of `ratio` is computed nevertheless; None: the server's default, 0.15. `segments` are
    documents and the like, in the prompt's order: spans of a prompt of token ids, texts as they stand in any other.
    None: the server finds them itself.
    """

    ratio: float | None = None
    segments: Sequence[Span | str] = ()


@dataclass(frozen=True, slots=True)
class SegmentUsage:
    """Positions ``start .. end - 1`` of the prompt by where their KV came from, in tokens."""

    start: int
    end: int
    num_exact: int
    num_approximate: int
    num_computed: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one answer, in tokens. `segments` are those of a request with `Reuse` that were looked for."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int  # prompt tokens whose KV was reused exactly
    num_approximate_tokens: int = 0  # prompt tokens whose KV was reused from elsewhere
    segments: tuple[SegmentUsage, ...] = ()
    queue_ms: float = 0.0  # from the request's arrival until this answer was first sent to prefill
    num_refreshed_tokens: int = 0  # approximate prompt tokens that were computed anew while the answer grew


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
class ReplicaStatus:
    """One replica of a gateway: its name, joined | leaving | gone, and its sequences by where they are."""

    name: str
    state: str
    is_ready: bool
    num_waiting: int
    num_prefilling: int
    num_decoding: int


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
    replicas: tuple[ReplicaStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What every generating call has beside its prompt. An empty `request_id` is to be drawn."""

    sampling: Mapping[str, SamplingValue]
    request_id: str = ""
    priority: int = 0
    cache_salt: str = ""
    timeout_s: float | None = None
    reuse: Reuse | None = None  # None: only what is there exactly

    def named(self) -> Self:
        """With a request_id: an attempt at a call names the one whose place it takes."""
        return self if self.request_id else replace(self, request_id=uuid4().hex)

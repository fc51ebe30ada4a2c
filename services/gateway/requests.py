"""The state of every request and of each of its sequences. What a client has been told is kept here alone: phases
may die, and the sequence goes on from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType

from services.gateway.detokenizer import Detokenizer, TextStep, TokenBytes
from services.gateway.output import OutputBuffer, Piece, SegmentUsage, Usage
from services.gateway.resumption import NOTHING_CAME, Origin, Resume, ResumedAnswer
from services.gateway.reuse import EXACT, PromptKv, PromptReuse, inherited
from services.gateway.validation import ResolvedRequest, seed_of_answer
from tandem.errors import InvalidRequestError
from tandem.types import ContentKind, FinishReason, Prefilled, SegmentOutcome, SequenceOutput, SequenceSpec

NS_PER_MS = 1e6
TOKEN_SOURCES = ("exact", "approximate", "recomputed", "computed")  # of a prompt's KV


class State(Enum):
    """Where a sequence is."""

    HELD = auto()  # answer 1 and up, until answer 0's prompt is computed and can be shared
    QUEUED = auto()  # waits for its turn; may have a forked lease
    PREFILLING = auto()  # prefill has it
    PREFILLED = auto()  # no phase has it: decode is away, or others are tried
    DECODING = auto()  # decode has it
    FINISHED = auto()  # the client has all that it gets


TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.HELD: frozenset({State.QUEUED, State.FINISHED}),
        State.QUEUED: frozenset({State.PREFILLING, State.FINISHED}),
        State.PREFILLING: frozenset({State.PREFILLED, State.QUEUED, State.FINISHED}),
        State.PREFILLED: frozenset({State.DECODING, State.QUEUED, State.FINISHED}),
        State.DECODING: frozenset({State.QUEUED, State.FINISHED}),
        State.FINISHED: frozenset(),
    }
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it came in, checked. `clock_s` is the orchestrator's clock; the queue wait counts from it."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    resolved: ResolvedRequest
    priority: int
    clock_s: float
    unix_ns: int
    cache_namespace: bytes  # empty: nothing is reused
    tenant: str = ""  # among whom the device is shared; the default one has no name
    model_digest: str = ""
    resumed: bool = False  # taken up again after its stream broke
    reuse: PromptReuse | None = None  # None: only what is there exactly
    content_kind: ContentKind = ContentKind.PROMPT
    domain: bytes = b""  # whose KV it is, also where nothing is reused; empty: nobody's

    @property
    def is_build(self) -> bool:
        """Of the gateway's own: it has a segment's entry computed, and nobody else knows of it."""
        return self.content_kind is ContentKind.SEGMENT

    @property
    def origin(self) -> Origin:
        """What its client needs to take it up again."""
        return Origin(self.resolved.sampling.seed, self.unix_ns, self.model_digest)


@dataclass(frozen=True, slots=True)
class RequestName:
    """What names a running request: tenants choose their request_ids without regard to one another."""

    tenant: str
    request_id: str


class Sequence:
    """One answer to one request. `lease_id` names its attempt in progress, or the fork that the next one starts on."""

    def __init__(self, arrival: Arrival, index: int, tokenizer: TokenBytes) -> None:
        resolved = arrival.resolved
        self.arrival = arrival
        self.index = index
        self.state = State.QUEUED if index == 0 else State.HELD
        self.lease_id: int | None = None
        self.sent_unix_ns = 0  # to prefill, the last time
        self._queue_ms = 0.0  # until it was sent the first time
        self.output_token_ids: list[int] = []
        self.num_resumed_tokens = 0  # of them, those that its client had before it was taken up here
        self.num_cached_tokens = 0
        self.prompt_kv = EXACT  # of its last prefill, or of answer 0's
        self._num_refreshed_tokens = 0
        self._is_forked = False  # its lease has the prompt that answer 0 computed
        self._outcomes: tuple[SegmentOutcome, ...] = ()  # what its client is told: of its first prefill
        self.first_token_s = 0.0
        self.last_token_s = 0.0
        self._sampling = seed_of_answer(resolved.sampling, index)
        self._detokenizer = Detokenizer(tokenizer, resolved.stop_strings, resolved.stop.min_tokens)

    @property
    def num_tokens(self) -> int:
        """Of the prompt, and emitted so far."""
        return len(self.arrival.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_approximate_tokens(self) -> int:
        """Of the prompt, in its first prefill: those whose KV was computed elsewhere."""
        return sum(outcome.num_approximate for outcome in self._outcomes) if self._outcomes else 0

    def num_tokens_by_source(self) -> dict[str, int]:
        """Of the prompt, in its first prefill; together they are the whole prompt."""
        recomputed = sum(outcome.num_computed for outcome in self._outcomes if outcome.found)
        counts = (self.num_cached_tokens, self.num_approximate_tokens, recomputed)
        rest = len(self.arrival.prompt_token_ids) - sum(counts)
        return dict(zip(TOKEN_SOURCES, (*counts, rest), strict=True))

    @property
    def num_new_tokens(self) -> int:
        """Tokens that were drawn since it was taken on here."""
        return len(self.output_token_ids) - self.num_resumed_tokens

    def take_up(self, answer: ResumedAnswer) -> None:
        """Goes on behind what its client has. InvalidRequestError when that ends with a stop string."""
        if answer.finished:
            self.state = State.FINISHED
            return
        for token_id in answer.token_ids:
            if self._detokenizer.push(token_id).matched_stop is not None:
                problem = f"of answer {self.index} hold a stop string, which ended it; mark it as finished"
                raise InvalidRequestError("resume.answers.token_ids", problem)
        self.output_token_ids.extend(answer.token_ids)
        self.num_resumed_tokens = len(answer.token_ids)

    def to(self, state: State) -> None:
        """Changes state. ValueError when the table does not have it."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"answer {self.index} of {self.arrival.request_id}: {self.state} to {state}")
        self.state = state

    def note_sent(self, unix_ns: int) -> None:
        """To prefill. What is told of its waiting ends with the first time."""
        if not self.sent_unix_ns:
            self._queue_ms = max(0, unix_ns - self.arrival.unix_ns) / NS_PER_MS
        self.sent_unix_ns = unix_ns

    def fork(self, prompt_kv: PromptKv, lease_id: int) -> None:
        """Goes on from the prompt that answer 0 has computed, in a lease that has it."""
        self.lease_id = lease_id
        self.prompt_kv = prompt_kv
        self._is_forked = True

    def start_over(self) -> None:
        """Back to the queue, in no lease: its prompt and what was emitted are prefilled again."""
        self.lease_id = None
        self._is_forked = False
        self.to(State.QUEUED)

    def start_elsewhere(self) -> None:
        """An unfinished one leaves its replica: it is in no lease and in no phase; what was emitted stays."""
        self.lease_id = None
        self._is_forked = False
        if self.state not in (State.HELD, State.QUEUED):
            self.to(State.QUEUED)

    def note_prefilled(self, entry: Prefilled) -> bool:
        """Before its token is taken in. Whether it is its first: what a client is told of its prompt."""
        if not self._is_forked:
            self.prompt_kv = PromptKv.of(entry)
        is_first = not self.num_new_tokens
        if is_first:
            self._note_usage(entry)
        return is_first

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt, then what was emitted so far."""
        return (*self.arrival.prompt_token_ids, *self.output_token_ids)

    def spec(self, lease_id: int) -> SequenceSpec:
        """What a phase is told, the tokens emitted so far included. Prefill keeps to the order of sending.

        Several answers share their prompt's blocks, so that nobody may write what is approximate in them.
        """
        arrival = self.arrival
        begins = self.state is State.PREFILLING and not self._is_forked
        return SequenceSpec(
            lease_id=lease_id,
            request_id=arrival.request_id,
            token_ids=self.token_ids,
            num_prompt_tokens=len(arrival.prompt_token_ids),
            sampling=self._sampling,
            stop=arrival.resolved.stop,
            priority=arrival.priority,
            arrival_unix_ns=self.sent_unix_ns if self.state is State.PREFILLING else arrival.unix_ns,
            cache_namespace=arrival.cache_namespace,
            reuse=arrival.reuse.spec if begins and arrival.reuse is not None else None,
            num_publishable_tokens=None if begins else self.prompt_kv.num_publishable_tokens,
            content_kind=arrival.content_kind,
            approximate=() if begins or arrival.resolved.n > 1 else self.prompt_kv.approximate,
            domain=arrival.domain,
        )

    def push(self, output: SequenceOutput, now_s: float) -> Piece:
        """Takes a token in; returns what the client hears of it. Its finish reason may be a stop string's."""
        self._note_token(output.token_id, now_s)
        self._num_refreshed_tokens += output.num_refreshed
        by_token = output.finish_reason is FinishReason.STOP
        step = TextStep("") if by_token else self._detokenizer.push(output.token_id)
        if step.matched_stop is None and output.finish_reason is not FinishReason.NONE:
            rest = self._detokenizer.finish()
            step = TextStep(step.text + rest.text, rest.matched_stop)
        if step.matched_stop is not None:
            return self._piece(output, step.text, FinishReason.STOP, step.matched_stop)
        matched = self._stop_token_text(output.token_id) if by_token else ""
        return self._piece(output, step.text, output.finish_reason, matched)

    def last_words(self) -> Piece:
        """The piece that ends an aborted answer, with the text that was held back."""
        text = self._detokenizer.finish().text
        return Piece(self.index, text, finish_reason=FinishReason.ABORT, usage=self.usage())

    def usage(self) -> Usage:
        """Up to now."""
        num_prompt_tokens = len(self.arrival.prompt_token_ids)
        num_output_tokens = len(self.output_token_ids)
        if not self._outcomes or self.arrival.reuse is None:
            return Usage(num_prompt_tokens, num_output_tokens, self.num_cached_tokens, self._queue_ms)
        return Usage(
            num_prompt_tokens,
            num_output_tokens,
            self.num_cached_tokens,
            self._queue_ms,
            self.num_approximate_tokens,
            tuple(map(SegmentUsage, self.arrival.reuse.spec.spans, self._outcomes)),
            self._num_refreshed_tokens,
        )

    def _note_usage(self, entry: Prefilled) -> None:
        self.num_cached_tokens = min(entry.num_cached_tokens, len(self.arrival.prompt_token_ids))
        if self.arrival.reuse is None:
            return
        if self._is_forked:
            spans = self.arrival.reuse.spec.spans
            self._outcomes = inherited(spans, self.prompt_kv.outcomes, self.num_cached_tokens)
            self.num_cached_tokens -= self.num_approximate_tokens
        else:
            self._outcomes = entry.segments

    def _note_token(self, token_id: int, now_s: float) -> None:
        self.output_token_ids.append(token_id)
        self.last_token_s = now_s
        if self.num_new_tokens == 1:
            self.first_token_s = now_s

    def _stop_token_text(self, token_id: int) -> str:
        """Only of ids that the client named: an end-of-sequence token is no news."""
        return str(token_id) if token_id in self.arrival.resolved.client_stop_ids else ""

    def _piece(self, output: SequenceOutput, text: str, reason: FinishReason, matched_stop: str) -> Piece:
        return Piece(
            index=self.index,
            text_delta=text,
            token_ids=(output.token_id,),
            logprobs=() if output.logprobs is None else (output.logprobs,),
            finish_reason=reason,
            matched_stop=matched_stop,
            usage=None if reason is FinishReason.NONE else self.usage(),
        )


@dataclass(eq=False, slots=True)
class Request:
    """A request from its admission to the end of its last sequence."""

    arrival: Arrival
    sequences: tuple[Sequence, ...]
    output: OutputBuffer
    prefill_compute_ms: float = field(default=0.0)  # of the request's first token
    deadline_s: float | None = None  # on the orchestrator's clock

    @property
    def request_id(self) -> str:
        """As the client knows it."""
        return self.arrival.request_id

    @property
    def name(self) -> RequestName:
        """Of those that run, its alone."""
        return RequestName(self.arrival.tenant, self.arrival.request_id)

    @property
    def was_sent(self) -> bool:
        """Whether a phase has had anything of it."""
        return any(sequence.sent_unix_ns for sequence in self.sequences)

    @property
    def started(self) -> bool:
        """Whether it has got a first token here."""
        return any(sequence.num_new_tokens for sequence in self.sequences)

    @property
    def first_token_s(self) -> float:
        """When it got its first token here, once it is `started`."""
        return min(sequence.first_token_s for sequence in self.sequences if sequence.num_new_tokens)

    @property
    def finished(self) -> bool:
        """Whether every answer is complete, by whatever cause."""
        return all(sequence.state is State.FINISHED for sequence in self.sequences)

    @property
    def queued(self) -> tuple[Sequence, ...]:
        """Answers that wait for their turn."""
        return tuple(sequence for sequence in self.sequences if sequence.state is State.QUEUED)

    @property
    def unfinished(self) -> tuple[Sequence, ...]:
        """Answers that go on."""
        return tuple(sequence for sequence in self.sequences if sequence.state is not State.FINISHED)

    def start_elsewhere(self) -> None:
        """Every unfinished answer goes on from its last token, in another replica."""
        for sequence in self.unfinished:
            sequence.start_elsewhere()
        _queue(self.sequences)


def new_request(
    arrival: Arrival, tokenizer: TokenBytes, max_unread_tokens: int, resume: Resume = NOTHING_CAME
) -> Request:
    """A request at its beginning, or behind what its client has of it. InvalidRequestError, as of `take_up`."""
    sequences = tuple(Sequence(arrival, index, tokenizer) for index in range(arrival.resolved.n))
    for sequence in sequences:
        sequence.take_up(resume.answer(sequence.index))
    _queue(sequences)
    num_unfinished = sum(sequence.state is not State.FINISHED for sequence in sequences)
    return Request(arrival, sequences, OutputBuffer(num_unfinished, max_unread_tokens))


def _queue(sequences: tuple[Sequence, ...]) -> None:
    """Those that need not wait for the first answer's prompt: it comes alone only where nothing has been drawn yet."""
    first = sequences[0]
    alone = first.state is State.QUEUED and not first.output_token_ids
    for sequence in sequences[1:]:
        if sequence.state is State.HELD and (sequence.output_token_ids or not alone):
            sequence.to(State.QUEUED)

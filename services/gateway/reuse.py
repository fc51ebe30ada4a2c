"""What a client lets be reused wherever it stood before: checked, found in its prompt, and told of afterwards. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tandem.errors import InvalidRequestError
from tandem.reuse.segments import Segment, SegmentRules, find_segments
from tandem.types import Prefilled, SegmentOutcome, SegmentReuse, Span

FIELD = "reuse"
DEFAULT_RATIO = 0.15
MAX_SEGMENTS = 64
ALL = 1.0  # at this ratio nothing is reused but exactly
TOLERANCE = 1e-6  # of a ratio that came as a float32


@dataclass(frozen=True, slots=True)
class ReuseFields:
    """As they came. A segment is its place in a prompt of token ids, or text of any other; None says neither."""

    ratio: float | None = None
    segments: tuple[Span | str | None, ...] = ()

    @property
    def resolved_ratio(self) -> float:
        """The client's, or the default."""
        return DEFAULT_RATIO if self.ratio is None else self.ratio

    @property
    def texts(self) -> tuple[str, ...]:
        """The segments of a prompt that is text."""
        return tuple(segment for segment in self.segments if isinstance(segment, str))

    @property
    def spans(self) -> tuple[Span, ...]:
        """The segments of a prompt of token ids."""
        return tuple(segment for segment in self.segments if isinstance(segment, Span))


@dataclass(frozen=True, slots=True)
class ReuseTerms:
    """Under which segments are looked for. An empty namespace is shared with nobody: then there are none."""

    ratio: float
    namespace: bytes
    first_token_id: int
    rules: SegmentRules
    max_segment_tokens: int


@dataclass(frozen=True, slots=True)
class PromptReuse:
    """What a phase is told of a prompt, and the segments that stand at its spans."""

    spec: SegmentReuse
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class PromptKv:
    """What a prompt's blocks hold: by segment, how many tokens stand before any that is approximate, and which are."""

    outcomes: tuple[SegmentOutcome, ...] = ()
    num_publishable_tokens: int | None = None  # None: all
    approximate: tuple[Span, ...] = ()

    @classmethod
    def of(cls, entry: Prefilled) -> "PromptKv":
        """As prefill says."""
        if not entry.segments and entry.num_publishable_tokens is None:
            return EXACT
        return cls(entry.segments, entry.num_publishable_tokens, entry.approximate)


EXACT = PromptKv()


def check_reuse(fields: ReuseFields, least_ratio: float, prompt_field: str) -> None:
    """Before the prompt is looked at. InvalidRequestError names the field and the remedy."""
    ratio = fields.resolved_ratio
    if not 0.0 <= ratio <= ALL:
        raise InvalidRequestError(f"{FIELD}.ratio", f"is {ratio:g}; use a number from 0 to 1")
    if ratio < least_ratio - TOLERANCE:
        problem = f"is {ratio:g}, and the least that is served is {least_ratio:g}; ask for that, or leave {FIELD} out"
        raise InvalidRequestError(f"{FIELD}.ratio", problem)
    if len(fields.segments) > MAX_SEGMENTS:
        problem = f"are {len(fields.segments)}; declare at most {MAX_SEGMENTS}"
        raise InvalidRequestError(f"{FIELD}.segments", problem)
    for number, segment in enumerate(fields.segments):
        _check_kind(f"{FIELD}.segments[{number}]", segment, is_text=prompt_field != "token_ids")


def spans_of_texts(texts: Sequence[str], prompt: str, places: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    """The tokens that lie wholly inside each text, which stands in `prompt` behind the one before.

    `places` as of `PlacedTokens`. InvalidRequestError: a text does not occur, or covers no whole token.
    """
    index = _PlaceIndex(places)
    spans: list[Span] = []
    past = 0
    for number, text in enumerate(texts):
        start = prompt.find(text, past)
        if start < 0:
            raise _bad_text(number, "does not occur in the prompt behind the ones before; give it as it stands there")
        past = start + len(text)
        span = index.inside(start, past)
        if span is None:
            raise _bad_text(number, "covers no whole token of the prompt; declare more of it, or leave it out")
        spans.append(span)
    return tuple(spans)


def find_reuse(token_ids: Sequence[int], declared: Sequence[Span], terms: ReuseTerms) -> PromptReuse | None:
    """None: nothing can be reused but exactly. InvalidRequestError: a declared span is not one of the prompt's."""
    namespace = terms.namespace if terms.ratio < ALL else b""
    try:
        found = find_segments(token_ids, namespace, terms.rules, declared)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{FIELD}.{error.field}", error.problem) from None
    segments = tuple(segment for segment in found if len(segment.token_ids) <= terms.max_segment_tokens)
    if not segments:
        return None
    spans = tuple(Span(segment.start, segment.start + len(segment.token_ids)) for segment in segments)
    return PromptReuse(SegmentReuse(terms.ratio, spans, terms.namespace, terms.first_token_id), segments)


def sightings(reuse: PromptReuse, outcomes: Sequence[SegmentOutcome]) -> Iterator[tuple[Segment, bool]]:
    """The segments that were looked for, and whether there was an entry; nobody looks for what is there exactly."""
    for segment, outcome in zip(reuse.segments, outcomes, strict=False):
        if outcome.num_approximate or outcome.num_computed:
            yield segment, outcome.found


def inherited(spans: Sequence[Span], outcomes: Sequence[SegmentOutcome], num_shared: int) -> tuple[SegmentOutcome, ...]:
    """Of an answer that shares the first `num_shared` tokens' KV with the one that these outcomes are of."""
    return tuple(_inherited(span, outcome, num_shared) for span, outcome in zip(spans, outcomes, strict=False))


def _inherited(span: Span, outcome: SegmentOutcome, num_shared: int) -> SegmentOutcome:
    num_tokens = span.end - span.start
    num_there = min(max(0, num_shared - span.start), num_tokens)
    num_approximate = min(outcome.num_approximate, num_there)
    return SegmentOutcome(num_there - num_approximate, num_approximate, num_tokens - num_there, outcome.found)


class _PlaceIndex:
    """Tokens by the characters that they are of; those that are of none are left out."""

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        kept = [(number, start, end) for number, (start, end) in enumerate(places) if start < end]
        self._numbers = [number for number, _, _ in kept]
        self._starts = [start for _, start, _ in kept]
        self._ends = [end for _, _, end in kept]

    def inside(self, start: int, end: int) -> Span | None:
        """The tokens of these characters and no others; None: there are none."""
        first, past = bisect_left(self._starts, start), bisect_right(self._ends, end)
        return Span(self._numbers[first], self._numbers[past - 1] + 1) if first < past else None


def _check_kind(field_path: str, segment: Span | str | None, *, is_text: bool) -> None:
    if segment is None:
        raise InvalidRequestError(field_path, f"is empty; set {'text' if is_text else 'tokens'}")
    if isinstance(segment, Span) and is_text:
        raise InvalidRequestError(f"{field_path}.tokens", "names token ids, and the prompt is text; set text")
    if isinstance(segment, str) and not is_text:
        raise InvalidRequestError(f"{field_path}.text", "is text, and the prompt is token ids; set tokens")
    if segment == "":
        raise InvalidRequestError(f"{field_path}.text", "is empty; leave the segment out")


def _bad_text(number: int, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{FIELD}.segments[{number}].text", problem)

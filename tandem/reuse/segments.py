"""A prompt's segments: runs of tokens whose KV may be there from elsewhere, whatever stands before them.

Their boundaries are the spans that the client declares; where it declares none, the template's separators; where there
are none, content-defined chunks. A segment's key names its tokens and the namespace, and no position.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

import numpy as np

from tandem.errors import InvalidRequestError
from tandem.reuse.chunking import ChunkSizes, chunk_ends
from tandem.types import Span

_PURPOSE = b"segment"  # no segment has the key of a block


class SegmentOrigin(StrEnum):
    """What set a segment's boundaries."""

    DECLARED = "declared"
    SEPARATED = "separated"
    CHUNKED = "chunked"


@dataclass(frozen=True, slots=True)
class SegmentRules:
    """`separators`: token ids with which a template ends a part; shorter segments than `min_tokens` are none."""

    separators: tuple[tuple[int, ...], ...] = ()
    sizes: ChunkSizes = field(default_factory=ChunkSizes)
    min_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """`token_ids` from position `start` of the prompt on; equal keys mean equal namespaces and tokens."""

    start: int
    token_ids: tuple[int, ...]
    key: bytes
    origin: SegmentOrigin


def segment_key(namespace: bytes, token_ids: Sequence[int]) -> bytes:
    """Of the tokens and nothing before them; the namespace holds the tenant's salt and all that KV depends on."""
    tokens = np.asarray(token_ids, dtype="<u4").tobytes()
    return hashlib.sha256(_PURPOSE + namespace + len(token_ids).to_bytes(8, "little") + tokens).digest()


def find_segments(
    token_ids: Sequence[int], namespace: bytes, rules: SegmentRules, declared: Sequence[Span] = ()
) -> tuple[Segment, ...]:
    """In the order of the prompt; none with an empty namespace, which is shared with nobody.

    InvalidRequestError: a declared span is empty, out of the prompt or overlaps the one before.
    """
    _check(declared, len(token_ids))
    if not namespace:
        return ()
    origin, spans = _spans(token_ids, rules, declared)
    return tuple(
        Segment(span.start, tokens, segment_key(namespace, tokens), origin)
        for span in spans
        if len(tokens := tuple(token_ids[span.start : span.end])) >= rules.min_tokens
    )


def _check(declared: Sequence[Span], num_tokens: int) -> None:
    past = 0
    for index, span in enumerate(declared):
        if not past <= span.start < span.end <= num_tokens:
            problem = f"{span.start} to {span.end} is not a span after {past} within {num_tokens} tokens"
            raise InvalidRequestError(f"segments[{index}]", f"{problem}; give them in order, not overlapping")
        past = span.end


def _spans(
    token_ids: Sequence[int], rules: SegmentRules, declared: Sequence[Span]
) -> tuple[SegmentOrigin, Sequence[Span]]:
    if declared:
        return SegmentOrigin.DECLARED, declared
    separated = _between(_separator_ends(token_ids, rules.separators), len(token_ids))
    if len(separated) > 1:
        return SegmentOrigin.SEPARATED, [part for span in separated for part in _chunks(token_ids, span, rules.sizes)]
    return SegmentOrigin.CHUNKED, _between(chunk_ends(token_ids, rules.sizes), len(token_ids))


def _between(ends: Sequence[int], num_tokens: int) -> list[Span]:
    return [Span(start, end) for start, end in pairwise((0, *ends, num_tokens)) if start < end]


def _chunks(token_ids: Sequence[int], span: Span, sizes: ChunkSizes) -> list[Span]:
    """What is longer than a chunk may be is cut by content."""
    if span.end - span.start <= sizes.highest:
        return [span]
    ends = chunk_ends(token_ids[span.start : span.end], sizes)
    return [Span(span.start + part.start, span.start + part.end) for part in _between(ends, ends[-1])]


def _separator_ends(token_ids: Sequence[int], separators: Sequence[tuple[int, ...]]) -> list[int]:
    """Positions after a separator, which belongs to what it ends."""
    return sorted({end for separator in separators for end in _ends_of(separator, tuple(token_ids))})


def _ends_of(separator: tuple[int, ...], token_ids: tuple[int, ...]) -> Iterator[int]:
    for end in range(len(separator), len(token_ids) + 1):
        if token_ids[end - 1] == separator[-1] and token_ids[end - len(separator) : end] == separator:
            yield end

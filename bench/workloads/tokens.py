"""Spans as token ids: drawn from a generator that the span's name seeds, so that no text has to be carried around."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.workloads.request import ModelLimits, PlannedRequest, Span


@dataclass(frozen=True, slots=True)
class TokenRange:
    """The ids that prompts are made of, `first` to `last`."""

    first: int
    last: int


def ordinary_tokens(limits: ModelLimits) -> TokenRange:
    """Special tokens lie at the vocabulary's ends: a twentieth at either side is left out."""
    margin = limits.vocab_size // 20
    return TokenRange(margin, limits.vocab_size - 1 - margin)


def span_tokens(span: Span, tokens: TokenRange, salt: str) -> list[int]:
    """The span's token ids. Another salt is another text, which no cache of an earlier run holds."""
    seed = int.from_bytes(hashlib.sha256(f"{salt}/{span.content}".encode()).digest()[:8], "big")
    drawn = np.random.default_rng(seed).integers(tokens.first, tokens.last + 1, size=span.num_tokens)
    return [int(token) for token in drawn]


def prompt_tokens(spans: Iterable[Span], tokens: TokenRange, salt: str) -> list[int]:
    """The spans one after another."""
    return [token for span in spans for token in span_tokens(span, tokens, salt)]


def all_prompts(requests: Iterable[PlannedRequest], tokens: TokenRange, salt: str) -> dict[int, list[int]]:
    """Each request's own spans, by its number; made before a run, since sending must cost little."""
    return {request.number: prompt_tokens(request.spans, tokens, salt) for request in requests}


class PromptsOnDemand(Mapping[int, Sequence[int]]):
    """As `all_prompts`, each made when it is asked for: those of a long run would fill memory."""

    def __init__(self, requests: Iterable[PlannedRequest], tokens: TokenRange, salt: str) -> None:
        self._spans = {request.number: request.spans for request in requests}
        self._tokens = tokens
        self._salt = salt

    def __getitem__(self, number: int) -> list[int]:
        return prompt_tokens(self._spans[number], self._tokens, self._salt)

    def __iter__(self) -> Iterator[int]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

"""The workloads without their times: who shares which text with whom. Pure, given the generator."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.workloads.lengths import LogNormal, RequestLength, scaled
from bench.workloads.request import Span
from bench.workloads.traces import MOONCAKE_BLOCK_TOKENS, TraceRow

NUM_PREFIXES = 8
NUM_DOCUMENTS = 64
DOCUMENTS_A_REQUEST = 4
TURNS_A_CHAT = 4
ZIPF_EXPONENT = 1.0  # some prefixes and documents are far more popular than others


@dataclass(frozen=True, slots=True)
class Turn:
    """What one request brings, and the answer's length."""

    spans: tuple[Span, ...]
    max_tokens: int


Conversation = tuple[Turn, ...]  # one turn, but for chats


def unshared(lengths: Sequence[RequestLength], seed: int) -> list[Conversation]:
    """Prompts that have nothing in common."""
    return [
        (Turn((Span(f"{seed}/alone/{number}", length.num_prompt_tokens),), length.num_output_tokens),)
        for number, length in enumerate(lengths)
    ]


def from_blocks(rows: Sequence[TraceRow], scale: float, max_context_tokens: int, seed: int) -> list[Conversation]:
    """A trace's prompts of shared blocks. Only a prompt's last block is cut short, so that prefixes stay equal."""
    block_tokens = max(1, round(MOONCAKE_BLOCK_TOKENS * scale))
    return [_of_blocks(row, scaled(row.length, scale, max_context_tokens), block_tokens, seed) for row in rows]


def shared_prefix(rng: np.random.Generator, count: int, max_context_tokens: int, seed: int) -> list[Conversation]:
    """One of eight system prompts, the popular ones more often, then a question of one's own."""
    prefix_tokens = max(1, min(512, max_context_tokens // 4))
    question = LogNormal(max(1, min(96, max_context_tokens // 16)), 0.5)
    chosen, questions = _popular(rng, NUM_PREFIXES, count), question.sample(rng, count)
    outputs = LogNormal(max(1, min(64, max_context_tokens // 16)), 0.5).sample(rng, count)
    room = max_context_tokens - prefix_tokens
    lengths = [scaled(RequestLength(q, out), 1.0, room) for q, out in zip(questions, outputs, strict=True)]
    return [
        (
            Turn(
                (
                    Span(f"{seed}/prefix/{chosen[number]}", prefix_tokens),
                    Span(f"{seed}/question/{number}", length.num_prompt_tokens),
                ),
                length.num_output_tokens,
            ),
        )
        for number, length in enumerate(lengths)
    ]


def rag(rng: np.random.Generator, count: int, max_context_tokens: int, seed: int) -> list[Conversation]:
    """An instruction, four documents in any order, a question: what exact prefixes reuse little of, segments much."""
    document_tokens = max(1, min(400, max_context_tokens // 8))
    instruction = Span(f"{seed}/instruction", max(1, min(48, max_context_tokens // 32)))
    question_tokens = max(1, min(32, max_context_tokens // 32))
    return [
        (
            Turn(
                (
                    instruction,
                    *(Span(f"{seed}/document/{document}", document_tokens) for document in _documents(rng)),
                    Span(f"{seed}/question/{number}", question_tokens),
                ),
                max(1, min(64, max_context_tokens // 16)),
            ),
        )
        for number in range(count)
    ]


def chat(rng: np.random.Generator, count: int, max_context_tokens: int, seed: int) -> list[Conversation]:
    """`count` turns in conversations of four, which share one system prompt."""
    room = max(2, max_context_tokens // (TURNS_A_CHAT + 1))  # for each turn, and one for the system prompt
    system = Span(f"{seed}/system", min(64, room))
    users = LogNormal(min(60, room / 2), 0.6).sample(rng, count)
    outputs = LogNormal(min(80, room / 2), 0.5).sample(rng, count)
    lengths = [scaled(RequestLength(user, out), 1.0, room) for user, out in zip(users, outputs, strict=True)]
    turns = [
        Turn((Span(f"{seed}/user/{number}", length.num_prompt_tokens),), length.num_output_tokens)
        for number, length in enumerate(lengths)
    ]
    chats = [turns[first : first + TURNS_A_CHAT] for first in range(0, count, TURNS_A_CHAT)]
    return [(Turn((system, *first.spans), first.max_tokens), *later) for first, *later in chats]


def _of_blocks(row: TraceRow, length: RequestLength, block_tokens: int, seed: int) -> Conversation:
    spans: list[Span] = []
    left = length.num_prompt_tokens
    for block in row.block_ids:
        if left <= 0:
            break
        spans.append(Span(f"{seed}/block/{block}", min(left, block_tokens)))
        left -= block_tokens
    return (Turn(tuple(spans), length.num_output_tokens),)


def _documents(rng: np.random.Generator) -> list[int]:
    weights = _zipf_weights(NUM_DOCUMENTS)
    return [int(drawn) for drawn in rng.choice(NUM_DOCUMENTS, DOCUMENTS_A_REQUEST, replace=False, p=weights)]


def _popular(rng: np.random.Generator, num_things: int, count: int) -> list[int]:
    return [int(drawn) for drawn in rng.choice(num_things, count, p=_zipf_weights(num_things))]


def _zipf_weights(num_things: int) -> list[float]:
    weights = 1.0 / np.arange(1, num_things + 1) ** ZIPF_EXPONENT
    return [float(weight) for weight in weights / weights.sum()]

"""Bias, penalties and bans on the device, and the likeliest token of each chunk of the vocabulary on the way."""

from dataclasses import dataclass

import torch
import triton
from triton import language as tl

from kernels.gpu.sampling_rows import IN_PROMPT, SamplingRows

_IN_PROMPT = tl.constexpr(IN_PROMPT)
_GREATEST = tl.constexpr(torch.finfo(torch.float32).max)


@dataclass(frozen=True, slots=True)
class Scores:
    """Logits that tokens are drawn from, and each chunk's greatest, at the first of the tokens that have it."""

    logits: torch.Tensor  # [num_rows, vocab_size] float32
    best: torch.Tensor  # [num_rows, num_chunks] float32
    best_ids: torch.Tensor  # [num_rows, num_chunks] int64


def adjust_logits(logits: torch.Tensor, rows: SamplingRows, chunk_tokens: int) -> Scores:
    """As `tandem.runner.adjustments.adjust` does, into fresh memory."""
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, chunk_tokens)
    scores = Scores(
        torch.empty_like(logits),
        logits.new_empty((num_rows, num_chunks)),
        logits.new_empty((num_rows, num_chunks), dtype=torch.int64),
    )
    _adjust[(num_rows, num_chunks)](
        logits,
        scores.logits,
        scores.best,
        scores.best_ids,
        rows.repetition_penalty,
        rows.presence_penalty,
        rows.frequency_penalty,
        rows.biased_ids,
        rows.bias,
        rows.num_biased,
        rows.banned_ids,
        rows.num_banned,
        rows.seen_row,
        rows.seen,
        max_biased=rows.bias.shape[1],
        max_banned=rows.banned_ids.shape[1],
        vocab_size=vocab_size,
        chunk=chunk_tokens,
        num_warps=8,
    )
    return scores


@triton.jit
def _adjust(
    logits: tl.tensor,
    scores: tl.tensor,
    best: tl.tensor,
    best_ids: tl.tensor,
    repetition_penalty: tl.tensor,
    presence_penalty: tl.tensor,
    frequency_penalty: tl.tensor,
    biased_ids: tl.tensor,
    bias: tl.tensor,
    num_biased: tl.tensor,
    banned_ids: tl.tensor,
    num_banned: tl.tensor,
    seen_row: tl.tensor,
    seen: tl.tensor,
    max_biased: tl.constexpr,
    max_banned: tl.constexpr,
    vocab_size: tl.constexpr,
    chunk: tl.constexpr,
) -> None:
    """One chunk of one row; lists of tokens are short, so each chunk looks for all of them.

    What is not a number is never the likeliest: a comparison of numbers alone finds a token of the vocabulary.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = part * chunk + tl.arange(0, chunk)
    inside = token < vocab_size
    score = tl.load(logits + row * vocab_size + token, mask=inside, other=float("-inf"))
    score = tl.where(score == score, score, float("-inf"))  # noqa: PLR0124 - not so of what is no number
    for index in range(0, tl.load(num_biased + row)):
        biased = tl.load(biased_ids + row * max_biased + index)
        score = tl.where(token == biased, score + tl.load(bias + row * max_biased + index), score)
    counts = tl.load(seen_row + row)
    if counts >= 0:
        marks = tl.load(seen + counts * vocab_size + token, mask=inside, other=0)
        penalty = tl.load(repetition_penalty + row)
        repeated = tl.minimum(tl.where(score > 0, tl.div_rn(score, penalty), score * penalty), _GREATEST)
        score = tl.where(marks > 0, repeated, score)
        count = marks & (_IN_PROMPT - 1)
        by_count = tl.load(presence_penalty + row) + tl.load(frequency_penalty + row) * count.to(tl.float64)
        score = tl.where(count > 0, score - by_count.to(tl.float32), score)
    for index in range(0, tl.load(num_banned + row)):
        banned = tl.load(banned_ids + row * max_banned + index)
        score = tl.where(token == banned, float("-inf"), score)
    tl.store(scores + row * vocab_size + token, score, mask=inside)
    place = row * tl.num_programs(1) + part
    tl.store(best + place, tl.max(score, 0))
    tl.store(best_ids + place, part * chunk + tl.argmax(score, 0))

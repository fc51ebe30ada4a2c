"""Draws each sequence's next token.

A draw depends on the row's logits, the sequence's parameters and the counter (seed, position): never on the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.draw_tokens import DrawTokens, draw_tokens
from tandem.runner.adjustments import adjust, changes_logits
from tandem.types import SamplingSpec, TokenLogprobs, TopLogprob


@dataclass(frozen=True, slots=True)
class Draw:
    """One row of `sample`: a sequence that needs a token."""

    sampling: SamplingSpec
    position: int  # of the new token: the number of tokens before it
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    banned_token_ids: Sequence[int] = ()  # such as the stop tokens before `min_tokens`


@dataclass(frozen=True, slots=True)
class SampledToken:
    """`logprobs` is None unless the sequence asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None


@torch.inference_mode()
def sample(logits: torch.Tensor, draws: Sequence[Draw], draw_by: DrawTokens = draw_tokens) -> list[SampledToken]:
    """One token for each row of `logits`, ``[num_rows, vocab_size]`` float32, which stays as it is.

    Bias, penalties and bans come first, then the draw, by the reference or another set of kernels. Log probabilities
    are those of the model: of `logits` as given, before bias, penalties, bans and temperature.
    """
    samplings, positions = [draw.sampling for draw in draws], [draw.position for draw in draws]
    token_ids = draw_by(_adjusted(logits, draws), samplings, positions)
    return [
        SampledToken(token_id, _logprobs(logits[index], token_id, draw.sampling) if draw.sampling.logprobs else None)
        for index, (token_id, draw) in enumerate(zip(token_ids, draws, strict=True))
    ]


def _adjusted(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """`logits` itself when no row asks for a change."""
    changed = [i for i, draw in enumerate(draws) if draw.banned_token_ids or changes_logits(draw.sampling)]
    if not changed:
        return logits
    adjusted = logits.clone()
    for index in changed:
        draw = draws[index]
        row = adjusted[index]
        adjust(row, draw.sampling, draw.prompt_token_ids, draw.output_token_ids, draw.banned_token_ids)
    return adjusted


def _logprobs(logits: torch.Tensor, token_id: int, sampling: SamplingSpec) -> TokenLogprobs:
    """Of one row, ``[vocab_size]``."""
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(sampling.num_top_logprobs)
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return TokenLogprobs(float(logprobs[token_id]), tuple(TopLogprob(*candidate) for candidate in top))

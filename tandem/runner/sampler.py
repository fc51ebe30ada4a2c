"""Draws each sequence's next token.

A draw depends on the row's logits, the sequence's parameters and the counter (seed, position): never on the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from tandem.runner.adjustments import adjust, changes_logits
from tandem.runner.filters import keep_likely
from tandem.runner.philox import uniforms
from tandem.types import SamplingSpec, TokenLogprobs, TopLogprob

SPAN_TOKENS = 256  # of the vocabulary, searched at once


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
def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> list[SampledToken]:
    """One token for each row of `logits`, ``[num_rows, vocab_size]`` float32, which stays as it is.

    Bias, penalties and bans come first. Temperature 0 takes the likeliest; any other divides the logits, top-k, top-p
    and min-p cut, and the token is found by inverting the distribution function in the order of token ids. Log
    probabilities are those of the model: of `logits` as given, before bias, penalties, bans and temperature.
    """
    adjusted = _adjusted(logits, draws)
    token_ids = adjusted.argmax(-1).tolist()
    drawn = [index for index, draw in enumerate(draws) if draw.sampling.temperature > 0.0]
    if drawn:
        rows = adjusted if len(drawn) == len(draws) else adjusted[drawn]
        chosen = _draw(rows, [draws[index] for index in drawn])
        for index, token_id in zip(drawn, chosen, strict=True):
            token_ids[index] = token_id
    return [
        SampledToken(token_id, _logprobs(logits[index], token_id, draw.sampling))
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


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Tokens of the rows with a temperature; `logits` is ``[len(draws), vocab_size]``."""
    temperatures = torch.tensor([[draw.sampling.temperature] for draw in draws], dtype=logits.dtype)
    shifted = logits - logits.amax(-1, keepdim=True)  # no temperature can make this overflow upwards
    # In place where it can be: fresh memory of this size costs more than the arithmetic.
    probs = keep_likely(shifted.div_(temperatures).softmax(-1), [draw.sampling for draw in draws])
    uniform = uniforms([draw.sampling.seed for draw in draws], [draw.position for draw in draws])
    token_ids: list[int] = _invert(probs, torch.from_numpy(uniform)[:, None]).tolist()
    return token_ids


def _invert(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Where each row's distribution function passes `uniform` ``[num_rows, 1]``: ``[num_rows]``.

    First by sums of spans of tokens, then within the span that was found, in float64. A target that rounding pushes out
    of its span is brought back, so that no token of probability 0 is drawn.
    """
    padding = -probs.shape[-1] % SPAN_TOKENS
    spans = functional.pad(probs, (0, padding)) if padding else probs
    spans = spans.view(len(probs), -1, SPAN_TOKENS)
    sums = spans.sum(-1, dtype=torch.float64)
    ends = sums.cumsum(-1)
    targets = uniform * ends[:, -1:]
    found = torch.searchsorted(ends, targets, right=True)
    before = ends.gather(1, found) - sums.gather(1, found)
    within = spans[torch.arange(len(probs)), found[:, 0]].cumsum(-1, dtype=torch.float64)
    last = torch.nextafter(within[:, -1:], torch.zeros_like(targets))
    offsets = torch.searchsorted(within, (targets - before).clamp(min=0.0).minimum(last), right=True)
    return (found * SPAN_TOKENS + offsets)[:, 0]


def _logprobs(logits: torch.Tensor, token_id: int, sampling: SamplingSpec) -> TokenLogprobs | None:
    """Of one row, ``[vocab_size]``."""
    if not sampling.logprobs:
        return None
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(sampling.num_top_logprobs)
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return TokenLogprobs(float(logprobs[token_id]), tuple(TopLogprob(*candidate) for candidate in top))

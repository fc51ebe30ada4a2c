"""Draws a token from each row of logits: by the row, its parameters and (seed, position) alone, never by its batch."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn import functional

from kernels.philox import uniforms
from kernels.token_filters import keep_likely
from tandem.types import SamplingSpec

SPAN_TOKENS = 256  # of the vocabulary, searched at once


class DrawTokens(Protocol):
    """`draw_tokens`. Another set's may round otherwise, and so draw the neighbour of a token hit at its edge."""

    def __call__(self, logits: torch.Tensor, samplings: Sequence[SamplingSpec], positions: Sequence[int]) -> list[int]:
        """See there."""
        ...


def draw_tokens(logits: torch.Tensor, samplings: Sequence[SamplingSpec], positions: Sequence[int]) -> list[int]:
    """One token id for each row of `logits`, ``[num_rows, vocab_size]`` float32, which stays as it is.

    Temperature 0 takes the likeliest, the first of equals. Any other divides the logits; top-k, top-p and min-p cut;
    the token is where the distribution function, in the order of token ids, passes the uniform number of the row's seed
    and position. Of `samplings`, nothing else is looked at. A row without a finite greatest logit gets some token.
    """
    drawn = [index for index, sampling in enumerate(samplings) if sampling.temperature > 0.0]
    if len(drawn) == len(samplings):
        return _draw(logits, samplings, positions)
    token_ids: list[int] = logits.argmax(-1).tolist()
    if drawn:
        chosen = _draw(logits[drawn], [samplings[index] for index in drawn], [positions[index] for index in drawn])
        for index, token_id in zip(drawn, chosen, strict=True):
            token_ids[index] = token_id
    return token_ids


def _draw(logits: torch.Tensor, samplings: Sequence[SamplingSpec], positions: Sequence[int]) -> list[int]:
    """Tokens of the rows with a temperature."""
    temperatures = logits.new_tensor([[sampling.temperature] for sampling in samplings])
    shifted = logits - logits.amax(-1, keepdim=True)  # no temperature can make this overflow upwards
    # In place where it can be: fresh memory of this size costs more than the arithmetic.
    probs = shifted.div_(temperatures).softmax(-1)
    probs[probs[:, 0].isnan()] = 1.0  # rows of no numbers: one must not fail its whole step
    probs = keep_likely(probs, samplings)
    uniform = uniforms([sampling.seed for sampling in samplings], positions)
    token_ids: list[int] = _invert(probs, torch.from_numpy(uniform).to(logits.device)[:, None]).tolist()
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
    within = spans[torch.arange(len(probs), device=probs.device), found[:, 0]].cumsum(-1, dtype=torch.float64)
    last = torch.nextafter(within[:, -1:], torch.zeros_like(targets))
    offsets = torch.searchsorted(within, (targets - before).clamp(min=0.0).minimum(last), right=True)
    return (found * SPAN_TOKENS + offsets)[:, 0]

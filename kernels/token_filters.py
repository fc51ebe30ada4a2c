"""Top-k, top-p and min-p as one thing: the least probability that a row keeps.

Tokens as likely as the last kept one are kept with it, so that what is kept does not depend on an order among equals.
"""

from collections.abc import Sequence

import torch

from tandem.types import SamplingSpec


def keep_likely(probs: torch.Tensor, samplings: Sequence[SamplingSpec]) -> torch.Tensor:
    """`probs` ``[num_rows, vocab_size]`` with 0 where a row's filters cut; rows are not normalised again.

    In this order: top-k, top-p of what is left, min-p relative to the likeliest. Holtzman et al. 2019 (top-p);
    Nguyen et al. 2024 (min-p).
    """
    if not any(_cuts(sampling) for sampling in samplings):
        return probs
    floors = [_floor(row, sampling) for row, sampling in zip(probs, samplings, strict=True)]
    return probs.masked_fill(probs < torch.tensor(floors, dtype=probs.dtype, device=probs.device)[:, None], 0.0)


def _cuts(sampling: SamplingSpec) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0


def _floor(probs: torch.Tensor, sampling: SamplingSpec) -> float:
    """The least probability kept in one row, ``[vocab_size]``."""
    floor = 0.0
    if sampling.top_k > 0:
        floor = float(probs.topk(min(sampling.top_k, probs.numel())).values[-1])
    if sampling.top_p < 1.0:
        floor = _top_p_floor(probs[probs >= floor], sampling.top_p)
    if sampling.min_p > 0.0:
        floor = max(floor, sampling.min_p * float(probs.max()))
    return floor


def _top_p_floor(probs: torch.Tensor, top_p: float) -> float:
    """The least probability of the smallest set of the likeliest that holds `top_p` of the whole of `probs`.

    Only what can belong to the set is sorted: all values below ``(1 - top_p) / n`` together are less than the
    ``1 - top_p`` that the set leaves out.
    """
    total = probs.sum(dtype=torch.float64)
    least = torch.minimum((1.0 - top_p) * total / probs.numel(), probs.max())  # rounding may not exclude them all
    candidates = probs[probs >= least]
    ranked = candidates.sort(descending=True).values
    mass_before = ranked.cumsum(0, dtype=torch.float64) - ranked
    num_kept = max(1, int((mass_before < top_p * total).sum()))
    return float(ranked[num_kept - 1])

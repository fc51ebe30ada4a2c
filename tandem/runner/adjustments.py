"""What changes a row's logits before a token is drawn: bias, penalties, bans."""

from collections.abc import Sequence

import numpy as np
import torch

from tandem.types import SamplingSpec


def changes_logits(sampling: SamplingSpec) -> bool:
    """Whether bias or a penalty is set; most sequences have none."""
    return bool(sampling.logit_bias) or _penalises(sampling)


def adjust(
    row: torch.Tensor,
    sampling: SamplingSpec,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
    banned_token_ids: Sequence[int],
) -> None:
    """Applies bias, then the penalties, then the bans to `row`, ``[vocab_size]`` float32, in place."""
    if sampling.logit_bias:
        biased = torch.tensor(list(sampling.logit_bias))
        row[biased] += torch.tensor(list(sampling.logit_bias.values()), dtype=row.dtype)
    if _penalises(sampling):
        _penalise_repetition(row, sampling.repetition_penalty, [*prompt_token_ids, *output_token_ids])
        _penalise_output(row, sampling, output_token_ids)
    if banned_token_ids:
        row[torch.tensor(list(banned_token_ids))] = float("-inf")


def _penalises(sampling: SamplingSpec) -> bool:
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _penalise_repetition(row: torch.Tensor, penalty: float, token_ids: Sequence[int]) -> None:
    """CTRL (Keskar et al. 2019, section 4.1), with negative logits multiplied so that they fall, too.

    A penalty near 0 leads to the greatest number, not past it: beside an infinite logit nothing can be drawn.
    """
    seen = torch.from_numpy(np.unique(np.array(token_ids, dtype=np.int64)))
    logits = row[seen]
    row[seen] = torch.where(logits > 0, logits / penalty, logits * penalty).clamp(max=torch.finfo(row.dtype).max)


def _penalise_output(row: torch.Tensor, sampling: SamplingSpec, output_token_ids: Sequence[int]) -> None:
    """OpenAI's presence penalty (once a token) and frequency penalty (for each time)."""
    tokens, counts = np.unique(np.array(output_token_ids, dtype=np.int64), return_counts=True)
    penalties = sampling.presence_penalty + sampling.frequency_penalty * counts
    row[torch.from_numpy(tokens)] -= torch.from_numpy(penalties).to(row.dtype)

"""Which tokens the host draws although the logits are on a device: those with rare features."""

from collections.abc import Sequence

import torch

from tandem.runner.adjustments import changes_logits
from tandem.runner.cuda.inputs import MAX_BANNED
from tandem.runner.sampler import Draw, SampledToken, sample


def host_draws(draw: Draw) -> bool:
    """Log probabilities, bias, penalties, and more banned tokens than a row on the device has room for."""
    return draw.sampling.logprobs or changes_logits(draw.sampling) or len(draw.banned_token_ids) > MAX_BANNED


def sample_on_host(logits: torch.Tensor, indices: Sequence[int], draws: Sequence[Draw]) -> list[SampledToken]:
    """Tokens of the rows `indices` of `logits` ``[num_rows, vocab_size]``, in their order. Waits for the device."""
    return sample(logits[torch.tensor(indices, device=logits.device)].cpu(), draws)

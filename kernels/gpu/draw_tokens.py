"""The draw as a set of kernels has it: the host asks with lists, and waits for the tokens."""

from collections.abc import Sequence

import torch

from kernels.gpu.sample_tokens import sample_tokens
from kernels.gpu.sampling_rows import RowRequest, pack_rows
from tandem.types import SamplingSpec


def draw_tokens(logits: torch.Tensor, samplings: Sequence[SamplingSpec], positions: Sequence[int]) -> list[int]:
    """See `kernels.draw_tokens.draw_tokens`. A captured step calls `kernels.gpu.sample_tokens` itself."""
    requests = [
        RowRequest(_draw_alone(sampling), position) for sampling, position in zip(samplings, positions, strict=True)
    ]
    nothing_seen = torch.empty(0, logits.shape[1], dtype=torch.int32, device=logits.device)
    rows = pack_rows(requests, nothing_seen, max_biased=0, max_banned=0)
    token_ids: list[int] = sample_tokens(logits.contiguous(), rows).tolist()
    return token_ids


def _draw_alone(sampling: SamplingSpec) -> SamplingSpec:
    """Without what changes logits, which the caller has done."""
    return SamplingSpec(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
    )

"""Attention over the paged cache; see `kernels.paged_attention` for what a row sees."""

from dataclasses import dataclass

import torch

from kernels.gpu.attention_plan import GpuPlan, heads_of
from kernels.gpu.chunk_attention import chunk_attention
from kernels.gpu.row_attention import row_attention


@dataclass(frozen=True, slots=True)
class GpuAttention:
    """`num_sms` is what the phase owns of the device; cached numbers times `kv_scale` are keys and values."""

    num_sms: int
    kv_scale: float

    def __call__(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        plan: GpuPlan,
        *,
        scale: float,
    ) -> torch.Tensor:
        """See `kernels.paged_attention.paged_attention`. Heads of a query row must lie one after another.

        Rows beyond the last sequence's stay unwritten.
        """
        rows = query if query[0].is_contiguous() else query.contiguous()
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        heads = heads_of(query, key_cache, scale, self.kv_scale)
        if len(query) > plan.num_seqs:  # else every sequence has one row
            chunk_attention(rows, key_cache, value_cache, plan, heads=heads, output=output)
        row_attention(rows, key_cache, value_cache, plan, heads=heads, num_sms=self.num_sms, output=output)
        return output

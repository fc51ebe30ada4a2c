"""What the attention kernels know on the host: shapes and pointers, never a value that lies on the device."""

import math
from dataclasses import dataclass

import torch
import triton

LOG2_E = math.log2(math.e)
TABLES = ("block_tables", "query_start", "context_lens", "row_positions")
"""Arguments that lie anywhere in a step's one copy: their alignment must not decide which kernel is compiled."""


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """A step's tables, read by the kernels when they run: a captured plan follows what is copied into its tensors."""

    block_tables: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_size: int
    sliding_window: int  # 0: none
    positions: torch.Tensor | None  # of chosen rows

    @property
    def num_seqs(self) -> int:
        """Padding included."""
        return self.context_lens.shape[0]

    @property
    def max_keys(self) -> int:
        """That a row can see, going by the width of the block tables."""
        width = self.block_tables.shape[1] * self.block_size
        return min(width, self.sliding_window) if self.sliding_window else width


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of one layer's heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    score_scale: float  # to powers of two
    value_scale: float

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.num_heads // self.num_kv_heads

    @property
    def dims(self) -> int:
        """`head_dim`, up to a power of two that tensor cores take."""
        dims: int = max(16, triton.next_power_of_2(self.head_dim))
        return dims


def plan_attention(
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    block_size: int,
    num_kv_heads: int,
    sliding_window: int | None = None,
    positions: torch.Tensor | None = None,
) -> GpuPlan:
    """See `kernels.paged_attention.plan_attention`. The tables may be int32 or int64; nothing is read or copied here.

    Sequences that pad a captured batch have one row and a context of 0; their rows come out as 0.
    """
    return GpuPlan(block_tables, query_start, context_lens, block_size, sliding_window or 0, positions)


def heads_of(query: torch.Tensor, key_cache: torch.Tensor, scale: float, kv_scale: float) -> Heads:
    """Of a call of `paged_attention`; cached numbers times `kv_scale` are keys and values."""
    num_heads, head_dim = query.shape[1:]
    return Heads(num_heads, key_cache.shape[2], head_dim, scale * kv_scale * LOG2_E, kv_scale)

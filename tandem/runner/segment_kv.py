"""Canonical KV of segments, copied to where a prompt has them.

A segment's *entry* is a short sequence: the model's first token, on which attention rests, then the segment's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.table import Kernels
from tandem.reuse.plan import Placement

NUM_FIRST = 1  # tokens of an entry before the segment


@dataclass(frozen=True, slots=True)
class SegmentKv:
    """Over a KV cache that it does not own; `frequencies` as of `tandem.model.layers.rotary_frequencies`."""

    kernels: Kernels
    kv_cache: torch.Tensor  # [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]
    frequencies: torch.Tensor  # [head_dim / 2] float32

    @torch.inference_mode()
    def place(self, placement: Placement, entry_block_ids: Sequence[int], block_ids: Sequence[int]) -> None:
        """Copies an entry's tokens into a sequence's own blocks, their keys turned to their positions there."""
        first = NUM_FIRST + placement.skip
        sources = torch.arange(first, first + placement.num_tokens)
        targets = torch.arange(placement.start, placement.start + placement.num_tokens)
        device = self.kv_cache.device
        table = self.kernels.rotary_table(self.frequencies, (targets - sources).to(device))
        self.kernels.move_kv(
            self.kv_cache,
            self.slots(sources, entry_block_ids).to(device),
            self.slots(targets, block_ids).to(device),
            table,
        )

    def slots(self, positions: torch.Tensor, block_ids: Sequence[int]) -> torch.Tensor:
        """Where a sequence's `positions` ``[num_tokens]`` lie in the cache; int64."""
        block_size = self.kv_cache.shape[3]
        return torch.tensor(block_ids)[positions // block_size] * block_size + positions % block_size

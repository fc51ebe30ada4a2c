"""Zeroes KV blocks before they are written for another sharing domain than the one whose KV they held."""

from collections.abc import Sequence

import torch


def wipe_blocks(kv_cache: torch.Tensor, block_ids: Sequence[int]) -> None:
    """Of all layers. In the step's thread, and on its stream: what the step launches comes after it.

    `kv_cache`: ``[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]``.
    """
    for block_id in block_ids:
        kv_cache[:, :, block_id].zero_()

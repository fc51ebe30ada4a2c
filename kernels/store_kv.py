"""Writes a step's keys and values into the paged cache."""

import torch


def store_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Stores row i of `key` and `value` into slot ``slot_mapping[i]``; the caches may have another dtype.

    `key`, `value`: ``[num_tokens, num_kv_heads, head_dim]``; `key_cache`, `value_cache`: ``[num_blocks, block_size,
    num_kv_heads, head_dim]``, contiguous; `slot_mapping`: ``[num_tokens]`` int64, ``block_id * block_size + offset``,
    no slot twice.
    """
    for rows, cache in ((key, key_cache), (value, value_cache)):
        slots = cache.view(-1, *cache.shape[2:])  # [num_blocks * block_size, num_kv_heads, head_dim]
        slots.index_copy_(0, slot_mapping, rows.to(cache.dtype))

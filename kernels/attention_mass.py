"""How much attention rows pay to each key of their sequence."""

import torch


def attention_mass(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    key_slots: torch.Tensor,
    positions: torch.Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Attention weights as of `kernels.paged_attention`, averaged over rows and heads: ``[num_keys]`` float32, sum 1.

    `query`: ``[num_rows, num_heads, head_dim]``, turned, at `positions` ``[num_rows]``; `key_cache`: ``[num_blocks,
    block_size, num_kv_heads, head_dim]``, contiguous; `key_slots`: ``[num_keys]`` int64, of positions 0, 1, ...
    """
    keys = key_cache.flatten(0, 1)[key_slots].float()  # [num_keys, num_kv_heads, head_dim]
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[1]
    by_kv_head = query.float().view(num_rows, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    folded = by_kv_head.reshape(num_kv_heads, -1, head_dim)  # the query heads of a key head, then their rows
    scores = torch.matmul(folded, keys.permute(1, 2, 0)) * scale
    by_row = scores.view(num_heads, num_rows, -1)
    key_positions = torch.arange(len(key_slots), device=query.device)
    hidden = key_positions > positions[:, None]
    if sliding_window is not None:
        hidden |= key_positions <= positions[:, None] - sliding_window
    return by_row.masked_fill(hidden, float("-inf")).softmax(-1).mean((0, 1))

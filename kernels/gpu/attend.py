"""The heart of both attention kernels: a tile of query rows against a span of one sequence's keys (Dao et al. 2022).

Scores are kept in powers of two: the caller's `scale` holds log2(e).
"""

import triton
from triton import language as tl

from kernels.gpu.dot import dot

# Of a row that has seen no key yet. Finite, so that a tile of which a row sees nothing is no ``inf - inf``.
NO_SCORE = tl.constexpr(-1.0e30)


@triton.jit
def attend(
    attended: tl.tensor,  # [num_rows, dims] float32, not divided by `weight_sum` yet
    best: tl.tensor,  # [num_rows] float32: the greatest score so far
    weight_sum: tl.tensor,  # [num_rows] float32
    query: tl.tensor,  # [num_rows, dims]
    positions: tl.tensor,  # [num_rows] of the rows in their sequence
    key_base: tl.tensor,  # the key head's first slot
    value_base: tl.tensor,
    table: tl.tensor,  # the sequence's block table
    slot_stride: tl.tensor,
    first_key: tl.tensor,  # a multiple of `key_tile`
    end_key: tl.tensor,
    scale: tl.tensor,
    sliding_window: tl.constexpr,  # 0: none
    block_size: tl.constexpr,
    head_dim: tl.constexpr,
    dims: tl.constexpr,  # head_dim, up to a power of two
    key_tile: tl.constexpr,
    masked: tl.constexpr,  # False: every row sees every key of the span, which is whole tiles
) -> tl.tensor:
    """`attended`, `best` and `weight_sum` with the keys ``first_key:end_key`` in."""
    dim = tl.arange(0, dims)
    for start in range(first_key, end_key, key_tile):
        keys = start + tl.arange(0, key_tile)
        exists = keys < end_key
        if masked:
            blocks = tl.load(table + keys // block_size, mask=exists, other=0)
        else:
            blocks = tl.load(table + keys // block_size)
        slots = blocks.to(tl.int64) * block_size + keys % block_size
        offsets = slots[:, None] * slot_stride + dim[None, :]
        key = _load_heads(key_base + offsets, exists, dim, head_dim, dims, masked).to(query.dtype)
        scores = dot(query, tl.trans(key)) * scale
        if masked:
            seen = exists[None, :] & (keys[None, :] <= positions[:, None])
            if sliding_window > 0:
                seen = seen & (keys[None, :] > positions[:, None] - sliding_window)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(best - higher)
        weight_sum = weight_sum * fade + tl.sum(weights, 1)
        value = _load_heads(value_base + offsets, exists, dim, head_dim, dims, masked).to(query.dtype)
        attended = attended * fade[:, None] + dot(weights.to(query.dtype), value)
        best = higher
    return attended, best, weight_sum


@triton.jit
def _load_heads(
    pointers: tl.tensor,
    exists: tl.tensor,
    dim: tl.tensor,
    head_dim: tl.constexpr,
    dims: tl.constexpr,
    masked: tl.constexpr,
) -> tl.tensor:
    """A tile of keys or values; zeros where there is none, since 0 times a stale slot's NaN were NaN."""
    if masked:
        heads = tl.load(pointers, mask=exists[:, None] & (dim[None, :] < head_dim), other=0.0)
    elif dims != head_dim:
        heads = tl.load(pointers, mask=dim[None, :] < head_dim, other=0.0)
    else:
        heads = tl.load(pointers)
    return heads

"""Copies cached tokens to other positions on the device: all layers in one launch."""

import torch
import triton
from triton import language as tl

from kernels.gpu.cached import to_cached
from kernels.rotary import RotaryTable


def move_kv(kv_cache: torch.Tensor, source_slots: torch.Tensor, target_slots: torch.Tensor, table: RotaryTable) -> None:
    """See `kernels.move_kv.move_kv`. A token with a negative target is left out."""
    num_layers, _, num_blocks, block_size, num_kv_heads, head_dim = kv_cache.shape
    _move_kv[(len(source_slots), num_layers)](
        kv_cache,
        source_slots,
        target_slots,
        table.cos,
        table.sin,
        num_blocks * block_size,
        num_kv_heads=num_kv_heads,
        head_tile=triton.next_power_of_2(num_kv_heads),
        head_dim=head_dim,
        dims=triton.next_power_of_2(head_dim),
    )


@triton.jit
def _move_kv(
    kv_cache: tl.tensor,
    source_slots: tl.tensor,
    target_slots: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    num_slots: tl.tensor,
    num_kv_heads: tl.constexpr,
    head_tile: tl.constexpr,
    head_dim: tl.constexpr,
    dims: tl.constexpr,
) -> None:
    """One token of one layer."""
    token, layer = tl.program_id(0), tl.program_id(1).to(tl.int64)
    target = tl.load(target_slots + token).to(tl.int64)
    if target < 0:
        return
    source = tl.load(source_slots + token).to(tl.int64)
    head = tl.arange(0, head_tile)[:, None]
    dim = tl.arange(0, dims)
    inside = (head < num_kv_heads) & (dim[None, :] < head_dim)
    width: tl.constexpr = num_kv_heads * head_dim
    keys = kv_cache + layer * 2 * num_slots * width + head * head_dim
    values = kv_cache + (layer * 2 + 1) * num_slots * width + head * head_dim  # a layer may have 2 ** 31 numbers
    straight = tl.load(keys + source * width + dim[None, :], mask=inside, other=0.0).to(tl.float32)
    swapped_dim = (dim + head_dim // 2) % head_dim
    swapped = tl.load(keys + source * width + swapped_dim[None, :], mask=inside, other=0.0).to(tl.float32)
    row_cos = tl.load(cos + token * head_dim + dim, mask=dim < head_dim, other=0.0)
    row_sin = tl.load(sin + token * head_dim + dim, mask=dim < head_dim, other=0.0)
    turned = straight * row_cos[None, :] + swapped * row_sin[None, :]
    value = tl.load(values + source * width + dim[None, :], mask=inside, other=0.0)
    tl.store(keys + target * width + dim[None, :], to_cached(turned, 1.0, kv_cache), mask=inside)
    tl.store(values + target * width + dim[None, :], value, mask=inside)

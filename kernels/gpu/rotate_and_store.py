"""Heads on their way from the projection to attention: normalised, turned and stored in one pass over them."""

from dataclasses import dataclass

import torch
import triton
from triton import language as tl

from kernels.gpu.cached import to_cached
from kernels.rotary import RotaryTable
from kernels.rotate_and_store import HeadNorm

_ELEMENTS = 1024  # of a program's heads


@dataclass(frozen=True, slots=True)
class GpuRotateAndStore:
    """Cached numbers times `kv_scale` are keys and values."""

    kv_scale: float

    def __call__(
        self,
        projected: torch.Tensor,
        table: RotaryTable,
        norm: HeadNorm | None,
        *,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> torch.Tensor:
        """See `kernels.rotate_and_store.rotate_and_store`; `projected` stays.

        A row with a negative slot, as padding has in a captured step, is turned but not stored.
        """
        num_rows, num_all, head_dim = projected.shape
        num_kv_heads = key_cache.shape[2]
        num_heads = num_all - 2 * num_kv_heads
        query = projected.new_empty((num_rows, num_heads, head_dim))
        dims = triton.next_power_of_2(head_dim)
        head_tile = max(1, _ELEMENTS // dims)
        _rotate_and_store[(num_rows, triton.cdiv(num_all, head_tile))](
            projected,
            table.cos,
            table.sin,
            norm.weight if norm else projected,
            query,
            key_cache,
            value_cache,
            slot_mapping,
            norm.eps if norm else 0.0,
            1.0 / self.kv_scale,
            normalises=norm is not None,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dims=dims,
            head_tile=head_tile,
        )
        return query


@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])  # it lies anywhere in a step's one copy
def _rotate_and_store(
    projected: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    norm_weight: tl.tensor,
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    slot_mapping: tl.tensor,
    eps: tl.tensor,
    inverse_scale: tl.tensor,
    normalises: tl.constexpr,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    dims: tl.constexpr,
    head_tile: tl.constexpr,
) -> None:
    """Some heads of one row. Halves are swapped by reading them twice: the second time from the first-level cache."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * head_tile + tl.arange(0, head_tile)
    dim = tl.arange(0, dims)
    swapped_dim = (dim + head_dim // 2) % head_dim
    inside = (head < num_heads + 2 * num_kv_heads)[:, None] & (dim < head_dim)[None, :]
    turns = (head < num_heads + num_kv_heads)[:, None] & inside
    row_heads = projected + (row * (num_heads + 2 * num_kv_heads) + head)[:, None] * head_dim
    straight = tl.load(row_heads + dim[None, :], mask=inside, other=0.0).to(tl.float32)
    swapped = tl.load(row_heads + swapped_dim[None, :], mask=turns, other=0.0).to(tl.float32)
    value = straight
    if normalises:
        scale = tl.rsqrt(tl.sum(straight * straight, 1) / head_dim + eps)[:, None]
        weights = norm_weight + head[:, None] * head_dim
        straight *= scale * tl.load(weights + dim[None, :], mask=turns, other=0.0).to(tl.float32)
        swapped *= scale * tl.load(weights + swapped_dim[None, :], mask=turns, other=0.0).to(tl.float32)
    row_cos = tl.load(cos + row * head_dim + dim, mask=dim < head_dim, other=0.0)
    row_sin = tl.load(sin + row * head_dim + dim, mask=dim < head_dim, other=0.0)
    turned = straight * row_cos[None, :] + swapped * row_sin[None, :]

    is_query = (head < num_heads)[:, None] & inside
    query_place = query + (row * num_heads + head)[:, None] * head_dim + dim[None, :]
    tl.store(query_place, turned.to(query.dtype.element_ty), mask=is_query)
    slot = tl.load(slot_mapping + row).to(tl.int64)
    end_head = tl.where(slot < 0, 0, num_heads + 2 * num_kv_heads)
    is_stored = inside & (head < end_head)[:, None]
    key_head = (slot * num_kv_heads + head - num_heads)[:, None] * head_dim + dim[None, :]
    is_key = turns & (head >= num_heads)[:, None] & is_stored
    tl.store(key_cache + key_head, to_cached(turned, inverse_scale, key_cache), mask=is_key)
    value_head = key_head - num_kv_heads * head_dim
    is_value = (head >= num_heads + num_kv_heads)[:, None] & is_stored
    tl.store(value_cache + value_head, to_cached(value, inverse_scale, value_cache), mask=is_value)

"""Writes a step's keys and values into the paged cache on the device."""

import torch
import triton
from triton import language as tl

from kernels.gpu.cached import to_cached


def store_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    kv_scale: float = 1.0,
) -> None:
    """See `kernels.store_kv.store_kv`; a row's heads lie one after another. Cached numbers times `kv_scale` are rows.

    A row with a negative slot, as padding has in a captured step, is not stored.
    """
    num_rows, num_kv_heads, head_dim = key.shape
    width = num_kv_heads * head_dim
    _store_kv[(num_rows,)](
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        key.stride(0),
        value.stride(0),
        1.0 / kv_scale,
        width=width,
        tile=triton.next_power_of_2(width),
    )


@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])  # it lies anywhere in a step's one copy
def _store_kv(
    key: tl.tensor,
    value: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    slot_mapping: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    inverse_scale: tl.tensor,
    width: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + row).to(tl.int64)
    if slot < 0:
        return
    column = tl.arange(0, tile)
    mask = column < width
    keys = tl.load(key + row * key_stride + column, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(value + row * value_stride + column, mask=mask, other=0.0).to(tl.float32)
    place = slot * width + column
    tl.store(key_cache + place, to_cached(keys, inverse_scale, key_cache), mask=mask)
    tl.store(value_cache + place, to_cached(values, inverse_scale, value_cache), mask=mask)

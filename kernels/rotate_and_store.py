"""From a layer's projection to attention: heads are normalised (where the family does), turned, and stored."""

from dataclasses import dataclass

import torch

from kernels.rms_norm import rms_norm
from kernels.rotary import RotaryTable, apply_rotary
from kernels.store_kv import store_kv


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Of query and key heads; `weight` is ``[num_heads + num_kv_heads, head_dim]``, contiguous."""

    weight: torch.Tensor
    eps: float


def rotate_and_store(
    projected: torch.Tensor,
    table: RotaryTable,
    norm: HeadNorm | None,
    *,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """Returns the turned query heads ``[num_tokens, num_heads, head_dim]``; `projected` may be used up.

    `projected`: ``[num_tokens, num_heads + 2 * num_kv_heads, head_dim]``, query, key, then value heads, contiguous;
    caches and `slot_mapping` as of `store_kv`.
    """
    num_kv_heads = key_cache.shape[2]
    turned, value = projected[:, :-num_kv_heads], projected[:, -num_kv_heads:]
    if norm is not None:
        turned = rms_norm(turned, norm.weight, norm.eps)
    turned = apply_rotary(turned, table)
    store_kv(turned[:, -num_kv_heads:], value, key_cache, value_cache, slot_mapping)
    return turned[:, :-num_kv_heads]

"""Copies cached tokens to other positions: what reuses a segment of KV somewhere else in a prompt.

Turning by the difference of positions is what turning by each of them would give (Su et al. 2021, equation 16).
"""

import torch

from kernels.rotary import RotaryTable, apply_rotary


def move_kv(kv_cache: torch.Tensor, source_slots: torch.Tensor, target_slots: torch.Tensor, table: RotaryTable) -> None:
    """Copies KV of all layers from ``source_slots[i]`` to ``target_slots[i]``, the keys turned by the table's row i.

    `kv_cache`: ``[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]``, contiguous; slots: ``[num_tokens]``
    int64, no target twice, no target a source; `table` is that of the new positions less the old ones, of either sign.
    Turned in float32, so always move what was computed in place: each move rounds once more.
    """
    slots = kv_cache.flatten(2, 3)  # [num_layers, 2, num_slots, num_kv_heads, head_dim]
    for keys, values in slots.unbind():
        keys[target_slots] = apply_rotary(keys[source_slots].float(), table).to(keys.dtype)
        values[target_slots] = values[source_slots]

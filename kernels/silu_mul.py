"""The gate of a SwiGLU feed-forward layer (Shazeer 2020, equation 6)."""

import torch
from torch.nn import functional


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of ``[num_tokens, 2 * width]``, gate before up. Returns ``[num_tokens, width]``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up

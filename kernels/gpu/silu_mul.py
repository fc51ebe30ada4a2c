"""The gate of a feed-forward layer on the device."""

import torch
import triton
from triton import language as tl

_TILE = 1024


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `kernels.silu_mul.silu_mul`; rounded once, at the end. `gate_up` is contiguous."""
    num_rows, both = gate_up.shape
    width = both // 2
    output = gate_up.new_empty((num_rows, width))
    _silu_mul[(num_rows, triton.cdiv(width, _TILE))](gate_up, output, width=width, tile=_TILE)
    return output


@triton.jit
def _silu_mul(gate_up: tl.tensor, output: tl.tensor, width: tl.constexpr, tile: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = column < width
    pair = gate_up + row * 2 * width + column
    gate = tl.load(pair, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(pair + width, mask=inside, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(output + row * width + column, product.to(output.dtype.element_ty), mask=inside)

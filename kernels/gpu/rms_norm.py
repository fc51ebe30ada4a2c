"""Normalisation on the device, fused with the addition before it."""

import torch
import triton
from triton import language as tl

from kernels.rms_norm import NormedResidual

_ELEMENTS_PER_WARP = 512


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> NormedResidual:
    """See `kernels.rms_norm.add_rms_norm`. `x` and `residual`: ``[num_rows, width]``, contiguous; both stay."""
    num_rows, width = x.shape
    tile = triton.next_power_of_2(width)
    result = NormedResidual(normed=torch.empty_like(x), residual=torch.empty_like(x))
    _add_rms_norm[(num_rows,)](
        x,
        residual,
        weight,
        result.normed,
        result.residual,
        eps,
        width=width,
        tile=tile,
        num_warps=min(16, max(1, tile // _ELEMENTS_PER_WARP)),
    )
    return result


@triton.jit
def _add_rms_norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    eps: tl.tensor,
    width: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """One row; the sum is rounded before it is normalised, since the next layer adds to what was rounded."""
    column = tl.arange(0, tile)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    added = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    added += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    rounded = added.to(total.dtype.element_ty)
    tl.store(total + place, rounded, mask=inside)
    wide = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    scaled = wide * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, scaled.to(normed.dtype.element_ty), mask=inside)

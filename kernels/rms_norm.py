"""Root mean square normalisation (Zhang and Sennrich 2019, equation 4)."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class NormedResidual:
    """`normed` goes into the next layer, `residual` past it; both have the input's shape."""

    normed: torch.Tensor
    residual: torch.Tensor


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalises the last dimension of `x` in float32 and scales it by `weight`, rounding once to x's dtype.

    `x`: ``[..., width]``; `weight`: ``[width]``, or any shape that broadcasts to x's. Returns ``[..., width]``.
    """
    wide = x.float()
    inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * inverse_rms * weight).to(x.dtype)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> NormedResidual:
    """Adds `x` to `residual` (in its dtype) and normalises the sum. All as in `rms_norm`, equal shapes."""
    total = residual + x
    return NormedResidual(rms_norm(total, weight, eps), total)

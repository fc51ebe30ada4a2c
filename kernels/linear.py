"""Matrix products with weights as checkpoints have them, ``[out_width, in_width]`` row by row, or quantised."""

import torch
from torch.nn import functional

from kernels.quantised import QuantisedWeight, Weight, dequantise


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``: ``[num_tokens, in_width]`` to ``[num_tokens, out_width]`` in x's dtype.

    A quantised weight is rounded to x's dtype; x is not rounded.
    """
    return functional.linear(x, _plain(weight, x.dtype), bias)


def linear_float32(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """``x @ weight.T`` in float32, whatever the operands' dtype; for logits."""
    return functional.linear(x, _plain(weight, x.dtype)).float()


def _plain(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    return dequantise(weight, dtype) if isinstance(weight, QuantisedWeight) else weight

"""Matrix products with weights as checkpoints have them: ``[out_width, in_width]``, row by row."""

import torch
from torch.nn import functional


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``: ``[num_tokens, in_width]`` to ``[num_tokens, out_width]`` in x's dtype."""
    return functional.linear(x, weight, bias)


def linear_float32(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T`` in float32, whatever the operands' dtype; for logits."""
    return functional.linear(x, weight).float()

"""Matrix products on the device are cuBLAS's."""

import torch

from kernels import linear as reference
from kernels.quantised import Weight


def linear_float32(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """See `kernels.linear.linear_float32`; on a GPU the sums are never rounded to the operands' dtype."""
    if isinstance(weight, torch.Tensor) and weight.is_cuda and weight.dtype != torch.float32:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return reference.linear_float32(x, weight)

"""Matrix products on the device are cuBLAS's."""

import torch

from kernels import linear as reference
from kernels.quantised import QuantisedWeight, Weight, dequantise


def linear_float32(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """See `kernels.linear.linear_float32`; on a GPU the sums are never rounded to the operands' dtype."""
    if not x.is_cuda or x.dtype == torch.float32:
        return reference.linear_float32(x, weight)
    plain = dequantise(weight, x.dtype) if isinstance(weight, QuantisedWeight) else weight
    return torch.mm(x, plain.T, out_dtype=torch.float32)

"""Tensors as the library takes them."""

import torch

from kernels.native import structs
from kernels.quantised import QuantisedWeight, Weight, WeightFormat

_FORMATS = {WeightFormat.INT8: 1, WeightFormat.INT4: 2}  # of linear.h


def weight_argument(weight: Weight, bias: torch.Tensor | None) -> structs.Weight:
    """Points to the tensors, which the caller keeps. TypeError as of `checked`."""
    bias_pointer = checked(bias).data_ptr() if bias is not None else None
    if not isinstance(weight, QuantisedWeight):
        return structs.Weight(checked(weight).data_ptr(), bias_pointer, *weight.shape)
    digits, scales = checked(weight.digits, torch.uint8), checked(weight.scales, torch.float16)
    return structs.Weight(
        None, bias_pointer, *weight.shape, _FORMATS[weight.format], digits.data_ptr(), scales.data_ptr()
    )


def checked(tensor: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """`tensor` itself. TypeError: the library would read something else than its values."""
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise TypeError(f"{tensor.dtype} of strides {tensor.stride()} is not contiguous {dtype}")
    return tensor

"""Views of a mapping's bytes as tensors, the same for every kind of memory."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tensor_view(memory: "torch.Tensor", dtype: str, shape: Sequence[int], offset_bytes: int) -> "torch.Tensor":
    """Part of `memory` (uint8 ``[size_bytes]``) as `shape` of `dtype`, no copy.

    ValueError when it would reach past the end, or starts between two elements.
    """
    import torch

    element: torch.dtype = getattr(torch, dtype)
    num_bytes = math.prod(shape) * element.itemsize
    end = offset_bytes + num_bytes
    if offset_bytes < 0 or num_bytes <= 0 or end > memory.numel() or offset_bytes % element.itemsize:
        raise ValueError(f"{dtype}{list(shape)} at {offset_bytes} does not lie in {memory.numel()} bytes")
    return memory[offset_bytes:end].view(element).view(*shape)

"""Which kernels a process uses: decided once, when the model is mapped."""

from dataclasses import dataclass

import torch

from kernels.native.kernels import native_kernels
from kernels.native.library import NativeUnavailableError
from kernels.table import Kernels, torch_kernels


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """`reason` says why it is not the fastest set; empty where it is."""

    kernels: Kernels
    reason: str


def choose_kernels(dtype: torch.dtype) -> KernelChoice:
    """The fastest set for weights and KV of `dtype` that this process can use."""
    if dtype != torch.bfloat16:
        return KernelChoice(
            torch_kernels(), f"native kernels are for bfloat16, not {str(dtype).removeprefix('torch.')}"
        )
    try:
        return KernelChoice(native_kernels(), "")
    except NativeUnavailableError as error:
        return KernelChoice(torch_kernels(), f"native kernels: {error}")

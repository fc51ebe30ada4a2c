"""Which kernels a process uses: decided once, when the model is mapped."""

from dataclasses import dataclass

import torch

from kernels.native.kernels import native_kernels
from kernels.native.levels import NativeUnavailableError
from kernels.table import Kernels, torch_kernels
from tandem.errors import DeviceError, UnsupportedModelError

_CPU = torch.device("cpu")
_GPU_DTYPES = (torch.bfloat16, torch.float16, torch.float8_e4m3fn)


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """`reason` says why it is not the fastest set; empty where it is."""

    kernels: Kernels
    reason: str


def choose_kernels(dtype: torch.dtype, device: torch.device = _CPU, num_sms: int | None = None) -> KernelChoice:
    """The fastest set for a KV cache of `dtype` on `device` that this process can use.

    `num_sms` is what the process owns of a GPU; None: all. UnsupportedModelError: a GPU has no kernels for `dtype`.
    DeviceError: Triton is missing.
    """
    return _gpu_choice(dtype, device, num_sms) if device.type == "cuda" else _cpu_choice(dtype)


def _cpu_choice(dtype: torch.dtype) -> KernelChoice:
    if dtype != torch.bfloat16:
        return KernelChoice(torch_kernels(), f"native kernels are for bfloat16, not {_name(dtype)}")
    try:
        return KernelChoice(native_kernels(), "")
    except NativeUnavailableError as error:
        return KernelChoice(torch_kernels(), f"native kernels: {error}")


def _gpu_choice(dtype: torch.dtype, device: torch.device, num_sms: int | None) -> KernelChoice:
    if dtype not in _GPU_DTYPES:
        known = ", ".join(map(_name, _GPU_DTYPES))
        raise UnsupportedModelError(f"dtype: a GPU has no kernels for {_name(dtype)}; it has for {known}")
    try:
        from kernels.gpu.kernels import gpu_kernels  # machines without a GPU need no Triton
    except ModuleNotFoundError as error:
        raise DeviceError(f"{error.name} is not installed; tandem-serve[cuda] brings it") from error
    if num_sms is None:
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    return KernelChoice(gpu_kernels(num_sms), "")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Device memory at an address of ours, as torch sees it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from tandem.errors import DeviceError

if TYPE_CHECKING:
    import torch

ByteView: TypeAlias = "Callable[[int, int], torch.Tensor]"
"""From an address and a size in bytes to uint8 ``[size_bytes]`` over that memory, no copy."""


class _DeviceBytes:
    """What `torch.as_tensor` takes without copying (the CUDA array interface, version 3)."""

    def __init__(self, address: int, size_bytes: int) -> None:
        # torch refuses memory that says it is read-only; whether it is, the mapping's own protection decides.
        interface = {"shape": (size_bytes,), "typestr": "|u1", "data": (address, False), "version": 3}
        self.__cuda_array_interface__ = interface


def device_bytes(address: int, size_bytes: int) -> "torch.Tensor":
    """The `ByteView` of a GPU. DeviceError should torch have copied instead."""
    import torch

    view = torch.as_tensor(_DeviceBytes(address, size_bytes), device="cuda")
    if view.data_ptr() != address:
        raise DeviceError(f"torch copied {size_bytes} bytes of device memory instead of viewing them")
    return view

"""The sets of kernels that tests run on; one that this machine cannot have is skipped, with the reason."""

import pytest

from kernels.native.kernels import native_kernels
from kernels.native.library import NativeUnavailableError
from kernels.table import Kernels, torch_kernels

KERNEL_SETS = ("torch", "native")


def kernel_set(name: str) -> Kernels:
    if name == "torch":
        return torch_kernels()
    try:
        return native_kernels()
    except NativeUnavailableError as error:
        pytest.skip(f"native kernels: {error}")

"""The sets of kernels that tests run on; one that this machine cannot have is skipped, with the reason."""

import pytest

from kernels.native.kernels import native_kernels
from kernels.native.levels import LEVELS, NativeUnavailableError
from kernels.table import Kernels, torch_kernels

_LEVELS = {f"native-{level.name}": level for level in LEVELS}
NATIVE_SETS = tuple(_LEVELS)
KERNEL_SETS = ("torch", *NATIVE_SETS)


def kernel_set(name: str) -> Kernels:
    if name == "torch":
        return torch_kernels()
    try:
        return native_kernels([_LEVELS[name]])
    except NativeUnavailableError as error:
        pytest.skip(f"{name}: {error}")

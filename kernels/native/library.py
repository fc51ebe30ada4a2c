"""Loads the library that `kernels.native.build` made, if it is there and the processor can run it."""

from ctypes import CDLL, POINTER, c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch  # noqa: F401  its OpenMP runtime is the one that the library must find

from kernels.native.levels import AVX512_BF16, library_path, runs_here
from kernels.native.structs import Heads, ProjectedHeads, Stack, StackStep, StepShape

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "tandem_linear": (None, [c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int32]),
    "tandem_attention": (
        None,
        [POINTER(StepShape), POINTER(Heads), c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_float],
    ),
    "tandem_add_rms_norm": (None, [c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]),
    "tandem_rotate_and_store": (None, [POINTER(ProjectedHeads), c_void_p, c_void_p]),
    "tandem_silu_mul": (None, [c_void_p, c_int64, c_int64, c_void_p]),
    "tandem_stack_scratch": (c_int64, [POINTER(Stack), c_int64]),
    "tandem_run_stack": (None, [POINTER(Stack), POINTER(StackStep)]),
}


class NativeUnavailableError(Exception):
    """Why there is no library to use; `str()` is the reason in a few words."""


def load_library() -> CDLL:
    """The library with its functions declared. NativeUnavailableError."""
    if not runs_here(AVX512_BF16):
        raise NativeUnavailableError("processor has no avx512_bf16")
    path = library_path(AVX512_BF16)
    if not path.exists():
        raise NativeUnavailableError("not built")
    try:
        library = CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"{path.name}: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library

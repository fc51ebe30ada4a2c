"""Loads a library that `kernels.native.build` made."""

from ctypes import CDLL, POINTER, c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch  # noqa: F401  its OpenMP runtime is the one that the library must find

from kernels.native.levels import Level, NativeUnavailableError, library_path
from kernels.native.structs import Heads, ProjectedHeads, Stack, StackStep, StepShape, Weight

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "tandem_linear": (None, [c_void_p, c_int64, POINTER(Weight), c_void_p, c_int32]),
    "tandem_attention": (
        None,
        [POINTER(StepShape), POINTER(Heads), c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_float],
    ),
    "tandem_add_rms_norm": (None, [c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]),
    "tandem_rotate_and_store": (None, [POINTER(ProjectedHeads), c_void_p, c_void_p]),
    "tandem_silu_mul": (None, [c_void_p, c_int64, c_int64, c_void_p]),
    "tandem_stack_scratch": (c_int64, [POINTER(Stack), c_int64]),
    "tandem_run_stack": (None, [POINTER(Stack), POINTER(StackStep)]),
    "tandem_rotary_table": (None, [c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p]),
    "tandem_move_kv": (
        None,
        [c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_void_p],
    ),
    "tandem_place_team": (c_int32, [c_void_p, c_int32]),
    "tandem_draw_tokens": (None, [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p]),
}


def load_library(level: Level) -> CDLL:
    """Its library with its functions declared. NativeUnavailableError."""
    path = library_path(level)
    try:
        library = CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"{path.name}: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library

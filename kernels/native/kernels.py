"""The library as a set of kernels."""

from functools import partial

from kernels.native.layers import NativeLayers
from kernels.native.library import load_library
from kernels.native.operators import NativeOperators, plan_attention
from kernels.table import Kernels


def native_kernels() -> Kernels:
    """For bfloat16 weights, rows and caches on CPU. NativeUnavailableError."""
    library = load_library()
    operators = NativeOperators(library)
    return Kernels(
        name="native-avx512bf16",
        plan_attention=plan_attention,
        paged_attention=operators.paged_attention,
        rotate_and_store=operators.rotate_and_store,
        add_rms_norm=operators.add_rms_norm,
        silu_mul=operators.silu_mul,
        linear=operators.linear,
        linear_float32=operators.linear_float32,
        fuse_layers=partial(NativeLayers, library),
    )

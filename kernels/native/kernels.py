"""The library as a set of kernels."""

from collections.abc import Sequence
from functools import partial

from kernels.native.layers import NativeLayers
from kernels.native.levels import LEVELS, Level, choose_level
from kernels.native.library import load_library
from kernels.native.operators import NativeOperators, plan_attention
from kernels.native.rotary import NativeRotary
from kernels.native.sampling import NativeSampling
from kernels.table import Kernels


def native_kernels(levels: Sequence[Level] = LEVELS) -> Kernels:
    """For bfloat16 weights, rows and caches on CPU, of the first level that can be had. NativeUnavailableError."""
    level = choose_level(levels)
    library = load_library(level)
    operators = NativeOperators(library)
    return Kernels(
        name=f"native-{level.name}",
        plan_attention=plan_attention,
        paged_attention=operators.paged_attention,
        rotate_and_store=operators.rotate_and_store,
        add_rms_norm=operators.add_rms_norm,
        silu_mul=operators.silu_mul,
        linear=operators.linear,
        linear_float32=operators.linear_float32,
        fuse_layers=partial(NativeLayers, library),
        rotary_table=NativeRotary(library).rotary_table,
        draw_tokens=NativeSampling(library).draw_tokens,
        move_kv=operators.move_kv,
    )

"""Numbers on their way into the cache."""

import triton
from triton import language as tl

_FP8_MAX = tl.constexpr(448.0)


@triton.jit
def to_cached(numbers: tl.tensor, inverse_scale: tl.tensor, cache: tl.tensor) -> tl.tensor:
    """float32 as the cache keeps it; what 8 bits cannot hold becomes the greatest that they can."""
    scaled = numbers * inverse_scale
    if cache.dtype.element_ty == tl.float8e4nv:
        scaled = tl.minimum(tl.maximum(scaled, -_FP8_MAX), _FP8_MAX)
    return scaled.to(cache.dtype.element_ty)

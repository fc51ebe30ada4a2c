"""Matrix products inside kernels."""

import triton
from triton import language as tl

# Triton's interpreter keeps bfloat16 as its bits in integers, and would multiply those.
_WIDEN = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(left: tl.tensor, right: tl.tensor) -> tl.tensor:
    """``left @ right`` summed in float32; operands of one dtype. float32 is not cut to TF32."""
    if _WIDEN:
        product = tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    else:
        product = tl.dot(left, right, input_precision="ieee")
    return product

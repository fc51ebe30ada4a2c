"""Where the Triton kernels can be run."""

import torch
import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)
SKIP_REASON = "needs an NVIDIA GPU"


def eight_bits(numbers: torch.Tensor) -> torch.Tensor:
    """The nearest that float8_e4m3fn has: the interpreter does not round to them as a GPU does."""
    return numbers.float().to(torch.float8_e4m3fn).to(numbers.dtype)

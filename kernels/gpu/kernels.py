"""The Triton kernels as a set."""

from kernels.gpu.attention_plan import plan_attention
from kernels.gpu.draw_tokens import draw_tokens
from kernels.gpu.linear import linear_float32
from kernels.gpu.move_kv import move_kv
from kernels.gpu.paged_attention import GpuAttention
from kernels.gpu.rms_norm import add_rms_norm
from kernels.gpu.rotate_and_store import GpuRotateAndStore
from kernels.gpu.silu_mul import silu_mul
from kernels.linear import linear
from kernels.table import Kernels


def gpu_kernels(num_sms: int, kv_scale: float = 1.0) -> Kernels:
    """For bfloat16 or float16 weights and rows on an NVIDIA GPU; the cache is of that dtype, or float8_e4m3fn.

    `num_sms` is what the phase owns: kernels see all SMs of the device. Cached numbers times `kv_scale` are keys and
    values. Every operator but `draw_tokens`, which waits for its tokens, can be captured into a CUDA graph: shapes
    alone decide what is launched and allocated.
    """
    return Kernels(
        name="triton",
        plan_attention=plan_attention,
        paged_attention=GpuAttention(num_sms, kv_scale),
        rotate_and_store=GpuRotateAndStore(kv_scale),
        add_rms_norm=add_rms_norm,
        silu_mul=silu_mul,
        linear=linear,
        linear_float32=linear_float32,
        fuse_layers=None,
        draw_tokens=draw_tokens,
        move_kv=move_kv,
    )

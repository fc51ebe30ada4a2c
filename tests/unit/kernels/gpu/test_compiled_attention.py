"""The attention kernels compiled for Hopper in the shapes of real models: tensor cores, registers and shared memory."""

import re

import pytest
import torch

from kernels.gpu.kernels import gpu_kernels
from tests.support.compiled_kernels import MAX_SHARED_BYTES, Compiled, compile_launch, recorded_launches
from tests.support.gpu import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: kernels are not compiled")

BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
LLAMA_8B, SMOLLM2 = (32, 8, 128), (9, 3, 64)
CASES = {
    "Llama 3 8B": (LLAMA_8B, BF16, BF16, None),
    "Llama 3 8B, window": (LLAMA_8B, BF16, BF16, 4096),
    "Llama 3 8B, fp8 cache": (LLAMA_8B, BF16, FP8, None),
    "SmolLM2 135M, float16": (SMOLLM2, FP16, FP16, None),
    "heads of 256": ((16, 8, 256), BF16, BF16, None),
}


def compiled(
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    sliding_window: int | None,
    has_chosen_rows: bool = False,
) -> dict[str, Compiled]:
    """The kernels of a step that has chunks and decode rows."""
    num_heads, num_kv_heads, head_dim = heads

    def tensor(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    kernels = gpu_kernels(num_sms=132)
    cache = tensor(1000, 16, num_kv_heads, head_dim, dtype=cache_dtype)
    with recorded_launches() as launches:
        plan = kernels.plan_attention(
            tensor(8, 128),
            tensor(9),
            tensor(8),
            block_size=16,
            num_kv_heads=num_kv_heads,
            sliding_window=sliding_window,
            positions=tensor(4096) if has_chosen_rows else None,
        )
        query = tensor(4096, num_heads, head_dim, dtype=dtype)
        kernels.paged_attention(query, cache, cache, plan, scale=head_dim**-0.5)
    return {launch.name: compile_launch(launch) for launch in launches}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention_uses_the_tensor_cores_and_spills_nothing(
    case: tuple[tuple[int, int, int], torch.dtype, torch.dtype, int | None],
) -> None:
    kernels = compiled(*case)
    assert set(kernels) == {"_attend_chunks", "_attend_rows", "_unite_parts"}
    for name, kernel in kernels.items():
        assert kernel.stack_bytes == 0, name
        assert kernel.shared_bytes <= MAX_SHARED_BYTES, name
    assert kernels["_attend_chunks"].programs_on_sm >= 1
    assert kernels["_attend_rows"].programs_on_sm >= 3, "one alone would wait for memory"
    assert "wgmma.mma_async" in kernels["_attend_chunks"].ptx
    assert re.search(r"mma\.sync\.aligned\.m16n8k16", kernels["_attend_rows"].ptx)
    for name in ("_attend_chunks", "_attend_rows"):
        assert "cp.async" in kernels[name].ptx, name  # keys and values are fetched ahead


@pytest.mark.parametrize("sliding_window", [None, 4096])
def test_chosen_rows_spill_nothing(sliding_window: int | None) -> None:
    kernel = compiled(LLAMA_8B, BF16, BF16, sliding_window, has_chosen_rows=True)["_attend_chunks"]
    assert kernel.stack_bytes == 0
    assert kernel.shared_bytes <= MAX_SHARED_BYTES
    assert "wgmma.mma_async" in kernel.ptx

"""Every other kernel compiled for Hopper, in the shapes of Llama 3 8B."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from kernels.gpu.kernels import gpu_kernels
from kernels.gpu.move_kv import move_kv
from kernels.gpu.sample_tokens import sample_tokens
from kernels.gpu.sampling_rows import RowRequest, SamplingRows, pack_rows
from kernels.gpu.sm_probe import launch_probe
from kernels.gpu.store_kv import store_kv
from kernels.rotary import RotaryTable
from kernels.rotate_and_store import HeadNorm
from tandem.types import SamplingSpec
from tests.support.compiled_kernels import MAX_SHARED_BYTES, Compiled, compile_launch, recorded_launches
from tests.support.gpu import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: kernels are not compiled")

WARPS_THAT_HIDE_MEMORY = 16  # on an SM, a quarter of what it can have
ROWS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 4096, 32, 8, 128, 128_256
KERNELS = gpu_kernels(num_sms=132)


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def slots() -> torch.Tensor:
    return tensor(ROWS, dtype=torch.int64)


def table() -> RotaryTable:
    return RotaryTable(*(tensor(ROWS, 1, HEAD_DIM, dtype=torch.float32) for _ in range(2)))


def cache(dtype: torch.dtype) -> torch.Tensor:
    return tensor(1000, 16, KV_HEADS, HEAD_DIM, dtype=dtype)


def rotate_and_store(dtype: torch.dtype, norm: HeadNorm | None) -> None:
    projected = tensor(ROWS, HEADS + 2 * KV_HEADS, HEAD_DIM)
    keys, values = cache(dtype), cache(dtype)
    KERNELS.rotate_and_store(projected, table(), norm, key_cache=keys, value_cache=values, slot_mapping=slots())


def store(dtype: torch.dtype) -> None:
    heads = tensor(ROWS, KV_HEADS, HEAD_DIM)
    store_kv(heads, heads, cache(dtype), cache(dtype), slots())


def move(dtype: torch.dtype) -> None:
    move_kv(tensor(32, 2, 100, 16, KV_HEADS, HEAD_DIM, dtype=dtype), slots(), slots(), table())


def sampling_rows() -> SamplingRows:
    """As they are on a device."""
    seen = torch.zeros(1, VOCAB, dtype=torch.int32)
    rows = pack_rows([RowRequest(SamplingSpec(), 0)] * ROWS, seen, max_biased=300, max_banned=16)
    return SamplingRows(*(getattr(rows, field.name).to("meta") for field in fields(rows)))


HEAD_NORM = HeadNorm(tensor(HEADS + KV_HEADS, HEAD_DIM), 1e-6)
CALLS: dict[str, Callable[[], object]] = {
    "add_rms_norm": lambda: KERNELS.add_rms_norm(tensor(ROWS, HIDDEN), tensor(ROWS, HIDDEN), tensor(HIDDEN), 1e-5),
    "silu_mul": lambda: KERNELS.silu_mul(tensor(ROWS, 28_672)),
    "rotate_and_store": lambda: rotate_and_store(torch.bfloat16, None),
    "rotate_and_store, head norm": lambda: rotate_and_store(torch.bfloat16, HEAD_NORM),
    "rotate_and_store, fp8": lambda: rotate_and_store(torch.float8_e4m3fn, None),
    "store_kv": lambda: store(torch.bfloat16),
    "store_kv, fp8": lambda: store(torch.float8_e4m3fn),
    "move_kv": lambda: move(torch.bfloat16),
    "move_kv, fp8": lambda: move(torch.float8_e4m3fn),
    "sample_tokens": lambda: sample_tokens(tensor(ROWS, VOCAB, dtype=torch.float32), sampling_rows()),
}


def compiled(call: Callable[[], object]) -> dict[str, Compiled]:
    with recorded_launches() as launches:
        call()
    return {launch.name: compile_launch(launch) for launch in launches}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_compiles_without_spills(call: Callable[[], object]) -> None:
    kernels = compiled(call)
    assert kernels
    for name, kernel in kernels.items():
        assert kernel.stack_bytes == 0, name
        assert kernel.shared_bytes <= MAX_SHARED_BYTES, name
        assert kernel.programs_on_sm * kernel.num_warps >= WARPS_THAT_HIDE_MEMORY, name


def test_where_a_step_s_tables_lie_does_not_decide_which_kernel_is_compiled() -> None:
    """They are parts of one copy, at any multiple of 8 bytes: else prompts would wait for the compiler now and then."""
    rows = [tensor(9, dtype=torch.int64) for _ in range(3)]
    with recorded_launches() as launches:
        rotate_and_store(torch.bfloat16, None)
        store(torch.bfloat16)
        keys, query = cache(torch.bfloat16), tensor(4096, HEADS, HEAD_DIM)
        tables = tensor(8, 128, dtype=torch.int64)
        plan = KERNELS.plan_attention(tables, rows[0], rows[1], block_size=16, num_kv_heads=KV_HEADS, positions=rows[2])
        KERNELS.paged_attention(query, keys, keys, plan, scale=1.0)
    assert len(launches) == 5
    for launch in launches:
        for parameter in launch.kernel.params:
            value = launch.arguments[parameter.name]
            if isinstance(value, torch.Tensor) and not value.is_floating_point():
                assert parameter.do_not_specialize_on_alignment, (launch.name, parameter.name)


def test_the_probe_reads_the_sm_and_the_clock() -> None:
    (kernel,) = compiled(lambda: launch_probe(tensor(1056, 3, dtype=torch.int64), 1_000_000)).values()
    assert "%smid" in kernel.ptx
    assert kernel.ptx.count("%globaltimer") == 2  # at the start, and in the loop

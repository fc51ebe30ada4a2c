"""Caches of more than 2 ** 31 numbers a layer: where a slot lies in them takes more than 32 bits."""

import mmap

import pytest
import torch

from kernels.gpu.kernels import gpu_kernels
from kernels.gpu.move_kv import move_kv
from kernels.gpu.store_kv import store_kv
from kernels.rotary import RotaryTable
from tests.support.attention_cases import dense_attention, make_sequence
from tests.support.gpu import INTERPRETED

pytestmark = pytest.mark.gpu

BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM = 16, 8, 128
NUM_BLOCKS = 2**31 // (BLOCK_SIZE * NUM_KV_HEADS * HEAD_DIM) + 2
SHAPE = (1, 2, NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM)
LAST = NUM_BLOCKS * BLOCK_SIZE - 1  # slot
NUM_BYTES = 2 * 2 * NUM_BLOCKS * BLOCK_SIZE * NUM_KV_HEADS * HEAD_DIM
KERNELS = gpu_kernels(num_sms=8)


@pytest.fixture(autouse=True)
def nothing_is_copied_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter copies each argument's memory onto itself at the end, and so would touch all of it."""
    if INTERPRETED:
        from triton.runtime.interpreter import GridExecutor

        monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)


@pytest.fixture
def kv_cache(device: torch.device) -> torch.Tensor:
    """Zeros; on a processor only the pages that are written to are memory."""
    if device.type == "cuda":
        return torch.zeros(SHAPE, dtype=torch.bfloat16, device=device)
    return torch.frombuffer(mmap.mmap(-1, NUM_BYTES), dtype=torch.bfloat16).view(SHAPE)


def heads(device: torch.device, num_rows: int, num_heads: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_heads)
    return torch.randn(num_rows, num_heads, HEAD_DIM, generator=generator).bfloat16().to(device)


def unturned(device: torch.device, num_rows: int) -> RotaryTable:
    shape = (num_rows, 1, HEAD_DIM)
    return RotaryTable(torch.ones(shape, device=device), torch.zeros(shape, device=device))


@pytest.mark.parametrize("num_rows", [1, 5])
def test_attention_over_the_last_blocks(device: torch.device, kv_cache: torch.Tensor, num_rows: int) -> None:
    key_cache, value_cache = kv_cache[0]
    sequence = make_sequence(20, num_rows, torch.Generator().manual_seed(0), (16, NUM_KV_HEADS, HEAD_DIM))
    slots = torch.tensor([*range(LAST - 15, LAST + 1), *range(LAST - 31, LAST - 27)], device=device)
    key, value, query = (each.bfloat16().to(device) for each in (sequence.key, sequence.value, sequence.query))
    store_kv(key, value, key_cache, value_cache, slots)
    plan = KERNELS.plan_attention(
        torch.tensor([[NUM_BLOCKS - 1, NUM_BLOCKS - 2]], device=device),
        torch.tensor([0, num_rows], device=device),
        torch.tensor([20], device=device),
        block_size=BLOCK_SIZE,
        num_kv_heads=NUM_KV_HEADS,
    )
    actual = KERNELS.paged_attention(query, key_cache, value_cache, plan, scale=HEAD_DIM**-0.5)
    torch.testing.assert_close(actual.cpu().double(), dense_attention(sequence), atol=2e-2, rtol=2e-2)


def test_turned_heads_are_stored_in_the_last_slot(device: torch.device, kv_cache: torch.Tensor) -> None:
    key_cache, value_cache = kv_cache[0]
    projected = heads(device, 1, 3 * NUM_KV_HEADS)
    KERNELS.rotate_and_store(
        projected,
        unturned(device, 1),
        None,
        key_cache=key_cache,
        value_cache=value_cache,
        slot_mapping=torch.tensor([LAST], device=device),
    )
    assert torch.equal(key_cache[-1, -1], projected[0, NUM_KV_HEADS : 2 * NUM_KV_HEADS])
    assert torch.equal(value_cache[-1, -1], projected[0, 2 * NUM_KV_HEADS :])


def test_tokens_are_moved_between_both_ends(device: torch.device, kv_cache: torch.Tensor) -> None:
    key_cache, value_cache = kv_cache[0]
    key_cache[-1, 3], value_cache[-1, 3] = heads(device, 2, NUM_KV_HEADS)
    key_cache[0, 2], value_cache[0, 2] = heads(device, 2, NUM_KV_HEADS) + 1
    sources, targets = (torch.tensor(slots, device=device) for slots in ([LAST - 12, 2], [5, LAST]))
    move_kv(kv_cache, sources, targets, unturned(device, 2))
    for cache in (key_cache, value_cache):
        assert torch.equal(cache[0, 5], cache[-1, 3])
        assert torch.equal(cache[-1, -1], cache[0, 2])
        assert bool(cache[0, 5].any())
        assert bool(cache[-1, -1].any())

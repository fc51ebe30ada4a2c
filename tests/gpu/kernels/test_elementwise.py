"""Norm, gate, rotation, storing and moving against the torch functions in float64, of numbers that bfloat16 has."""

import pytest
import torch

from kernels import move_kv as torch_move
from kernels.gpu.kernels import gpu_kernels
from kernels.gpu.move_kv import move_kv
from kernels.gpu.store_kv import store_kv
from kernels.rms_norm import add_rms_norm
from kernels.rotary import RotaryTable, apply_rotary, inverse_frequencies, rotary_table
from kernels.rotate_and_store import HeadNorm, rotate_and_store
from kernels.silu_mul import silu_mul
from tests.support.gpu import eight_bits

pytestmark = pytest.mark.gpu

KERNELS = gpu_kernels(num_sms=8)
ONE_STEP = 2**-7  # of bfloat16; the interpreter cuts where a GPU rounds
NAN = float("nan")


def normal(device: torch.device, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).bfloat16().to(device)


@pytest.mark.parametrize("width", [1, 33, 576, 4096])
def test_add_rms_norm(device: torch.device, width: int) -> None:
    x, residual, weight = normal(device, 5, width), normal(device, 5, width, seed=1) * 3, normal(device, width, seed=2)
    before = residual.clone()
    result = KERNELS.add_rms_norm(x, residual, weight, 1e-5)
    exact = add_rms_norm(x.double(), residual.double(), weight.double(), 1e-5)
    assert torch.equal(residual, before)
    torch.testing.assert_close(result.residual.double(), exact.residual, rtol=ONE_STEP, atol=0)
    torch.testing.assert_close(result.normed.double(), exact.normed, rtol=2 * ONE_STEP, atol=2e-2)


def test_large_numbers_are_normalised(device: torch.device) -> None:
    x = normal(device, 2, 64) * 1e15  # their squares sum to less than float32's greatest number
    result = KERNELS.add_rms_norm(x, torch.zeros_like(x), torch.ones_like(x[0]), 1e-5)
    exact = add_rms_norm(x.double(), torch.zeros_like(x).double(), torch.ones_like(x[0]).double(), 1e-5)
    torch.testing.assert_close(result.normed.double(), exact.normed, rtol=2 * ONE_STEP, atol=0)


@pytest.mark.parametrize("width", [1, 24, 1536])
def test_silu_mul(device: torch.device, width: int) -> None:
    gate_up = normal(device, 5, 2 * width) * 8
    gate_up[0, 0], gate_up[1, 0] = -300.0, 300.0
    exact = silu_mul(gate_up.double())
    torch.testing.assert_close(KERNELS.silu_mul(gate_up).double(), exact, rtol=2 * ONE_STEP, atol=1e-5)


def caches(device: torch.device, head_dim: int, num_kv_heads: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Keys and values, NaN throughout."""
    return tuple(torch.full((3, 4, num_kv_heads, head_dim), NAN, device=device).to(dtype) for _ in "kv")


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 24), (9, 3, 64), (32, 8, 128)])
def test_rotate_and_store(device: torch.device, num_heads: int, num_kv_heads: int, head_dim: int, normed: bool) -> None:
    slots = torch.tensor([7, 2, -1, 11], device=device)  # the third row is padding
    projected = normal(device, 4, num_heads + 2 * num_kv_heads, head_dim)
    norm = HeadNorm(normal(device, num_heads + num_kv_heads, head_dim, seed=1), 1e-6) if normed else None
    table = rotary_table(inverse_frequencies(head_dim, 1e4), torch.tensor([0, 5, 900, 31]))
    exact_caches = caches(torch.device("cpu"), head_dim, num_kv_heads, torch.float32)
    exact_norm = HeadNorm(norm.weight.cpu().float(), 1e-6) if norm else None
    exact = rotate_and_store(
        projected.cpu().float(),
        table,
        exact_norm,
        key_cache=exact_caches[0],
        value_cache=exact_caches[1],
        slot_mapping=torch.tensor([7, 2, 5, 11]),  # somewhere
    )
    for cache in exact_caches:
        cache.view(-1, num_kv_heads, head_dim)[5] = NAN
    actual_caches = caches(device, head_dim, num_kv_heads, torch.bfloat16)
    on_device = RotaryTable(table.cos.to(device), table.sin.to(device))
    query = KERNELS.rotate_and_store(
        projected, on_device, norm, key_cache=actual_caches[0], value_cache=actual_caches[1], slot_mapping=slots
    )
    torch.testing.assert_close(query.cpu().float(), exact, rtol=2 * ONE_STEP, atol=1e-5)
    for cache, exact_cache in zip(actual_caches, exact_caches, strict=True):
        torch.testing.assert_close(cache.cpu().float(), exact_cache, rtol=2 * ONE_STEP, atol=1e-5, equal_nan=True)


def test_store_kv_writes_only_the_mapped_slots(device: torch.device) -> None:
    key_cache, value_cache = caches(device, 24, 5, torch.bfloat16)
    both = normal(device, 3, 2, 5, 24)  # a row's keys and values lie beside each other
    store_kv(both[:, 0], both[:, 1], key_cache, value_cache, torch.tensor([7, -1, 2], device=device))
    for cache, rows in ((key_cache, both[:, 0]), (value_cache, both[:, 1])):
        slots = cache.view(-1, 5, 24)
        assert torch.equal(slots[7], rows[0])
        assert torch.equal(slots[2], rows[2])
        assert int(cache.isnan().sum()) == cache.numel() - 2 * 5 * 24


def test_an_fp8_cache_holds_scaled_numbers(device: torch.device) -> None:
    key_cache, value_cache = caches(device, 64, 2, torch.float8_e4m3fn)
    key, value = (eight_bits(normal(device, 1, 2, 64, seed=seed)) * 0.25 for seed in (0, 1))
    value[0, 0, 0], value[0, 1, 1] = 1e6, -1e6  # more than 8 bits hold
    store_kv(key, value, key_cache, value_cache, torch.tensor([3], device=device), kv_scale=0.25)
    stored_key, stored_value = (cache.view(-1, 2, 64)[3].bfloat16() * 0.25 for cache in (key_cache, value_cache))
    assert torch.equal(stored_key, key[0])
    assert torch.equal(stored_value, value[0].clamp(-448 * 0.25, 448 * 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moved_keys_are_those_of_the_new_positions(device: torch.device, dtype: torch.dtype) -> None:
    """Keys stored at one place and moved, against keys stored at the other place at once."""
    head_dim, num_kv_heads = 64, 3
    frequencies = inverse_frequencies(head_dim, 1e4)
    raw = torch.randn(2, 2, 5, num_kv_heads, head_dim, generator=torch.Generator().manual_seed(0))
    old, new = torch.tensor([3, 4, 5, 6, 7]), torch.tensor([1003, 1004, 1005, 2, 3])
    sources, targets = torch.tensor([0, 17, 18, 5, 40]), torch.tensor([63, 20, 33, 8, 9])
    before = cache_with(raw, sources, rotary_table(frequencies, old))
    exact = cache_with(raw, targets, rotary_table(frequencies, new))
    table = rotary_table(frequencies, new - old)
    tolerance = 3e-4 if dtype == torch.float32 else 3e-2  # float32 has angles of 1,000 to 1e-4
    for move, place in ((torch_move.move_kv, torch.device("cpu")), (move_kv, device)):
        cache = before.to(place, dtype)
        on_device = RotaryTable(table.cos.to(place), table.sin.to(place))
        move(cache, sources.to(place), targets.to(place), on_device)
        slots, exact_slots = cache.cpu().float().flatten(2, 3), exact.flatten(2, 3)
        torch.testing.assert_close(slots[:, :, targets], exact_slots[:, :, targets], atol=tolerance, rtol=tolerance)
        assert torch.equal(slots[:, :, sources], before.to(dtype).float().flatten(2, 3)[:, :, sources])
        assert int(slots[0, 0, :, 0, 0].isnan().sum()) == 64 - 10


def cache_with(raw: torch.Tensor, slots: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """``[num_layers, 2, 4, 16, num_kv_heads, head_dim]`` float32 with `raw` in `slots`, its keys turned; else NaN."""
    num_layers, _, _, num_kv_heads, head_dim = raw.shape
    cache = torch.full((num_layers, 2, 4, 16, num_kv_heads, head_dim), NAN)
    flat = cache.flatten(2, 3)
    for layer in range(num_layers):
        flat[layer, 0, slots] = apply_rotary(raw[layer, 0], table)
        flat[layer, 1, slots] = raw[layer, 1]
    return cache

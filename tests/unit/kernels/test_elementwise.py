"""Norm, rotary and gate against transformers' modules and float64; every set of kernels against the torch functions."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rotary import apply_rotary, inverse_frequencies, rotary_table, scale_llama3
from kernels.rotate_and_store import HeadNorm, rotate_and_store
from kernels.silu_mul import silu_mul
from kernels.table import Kernels
from tests.support.kernel_sets import KERNEL_SETS, kernel_set
from tests.support.paged_decoder import one_thread

ONE_STEP = 2**-7  # of bfloat16: a result near the middle of two values may be rounded either way


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", params=KERNEL_SETS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernel_set(request.param)


def test_rms_norm_equals_transformers() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 33) * 5, torch.randn(33)
    norm = LlamaRMSNorm(33, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(weight)
        torch.testing.assert_close(rms_norm(x, weight, 1e-5), norm(x))


def test_rms_norm_of_bfloat16_is_rounded_once() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 33).bfloat16(), torch.randn(33).bfloat16()
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), exact.bfloat16(), rtol=2**-8, atol=0)


def test_rms_norm_with_a_weight_for_each_head() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 3, 8), torch.randn(3, 8)
    expected = torch.stack([rms_norm(x[:, head], weight[head], 1e-6) for head in range(3)], dim=1)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), expected)


def test_add_rms_norm_is_the_norm_of_the_sum() -> None:
    torch.manual_seed(0)
    x, residual, weight = torch.randn(5, 8), torch.randn(5, 8), torch.randn(8)
    result = add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(result.residual, residual + x)
    assert torch.equal(result.normed, rms_norm(residual + x, weight, 1e-6))


def test_silu_mul() -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(5, 9), torch.randn(5, 9)
    assert torch.equal(silu_mul(torch.cat((gate, up), -1)), functional.silu(gate) * up)


def llama_config(**rope: float | str) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": 500000.0, **rope},
    )


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "llama3"])
def test_rotary_equals_transformers(scaled: bool) -> None:
    torch.manual_seed(0)
    positions = torch.tensor([0, 1, 17, 511, 8191, 100_000])
    query, key = torch.randn(6, 4, 16), torch.randn(6, 2, 16)
    frequencies = inverse_frequencies(16, 500000.0)
    config = llama_config(rope_type="default")
    if scaled:
        settings = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        frequencies = scale_llama3(frequencies, **settings, original_max_positions=8192)
        config = llama_config(rope_type="llama3", original_max_position_embeddings=8192, **settings)
    cos, sin = LlamaRotaryEmbedding(config)(query, positions[None])
    expected = apply_rotary_pos_emb(query.transpose(0, 1)[None], key.transpose(0, 1)[None], cos, sin)
    table = rotary_table(frequencies, positions)
    for actual, wanted in zip((apply_rotary(query, table), apply_rotary(key, table)), expected, strict=True):
        torch.testing.assert_close(actual, wanted[0].transpose(0, 1), atol=1e-5, rtol=0)


def test_rotary_keeps_dtype_and_length() -> None:
    x = torch.randn(3, 2, 16).bfloat16()
    turned = apply_rotary(x, rotary_table(inverse_frequencies(16, 1e4), torch.tensor([0, 5, 900])))
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned[0], x[0])
    torch.testing.assert_close(turned.float().norm(dim=-1), x.float().norm(dim=-1), rtol=1e-2, atol=0)


@pytest.mark.parametrize("width", [1, 16, 33, 576])
def test_add_rms_norm_of_bfloat16(kernels: Kernels, width: int) -> None:
    torch.manual_seed(0)
    x, residual, weight = (torch.randn(*shape, width).bfloat16() for shape in ((7,), (7,), ()))
    before = residual.clone()
    result = kernels.add_rms_norm(x, residual, weight, 1e-5)
    exact = add_rms_norm(x.double(), residual.double(), weight.double(), 1e-5)
    assert torch.equal(residual, before)
    assert torch.equal(result.residual, exact.residual.bfloat16())
    torch.testing.assert_close(result.normed.double(), exact.normed, rtol=ONE_STEP, atol=2e-2)


@pytest.mark.parametrize("width", [1, 24, 1536])
def test_silu_mul_of_bfloat16(kernels: Kernels, width: int) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(5, 2 * width) * 8).bfloat16()
    gate_up[0, 0], gate_up[1, 0] = -300.0, 300.0
    exact = silu_mul(gate_up.double())
    torch.testing.assert_close(kernels.silu_mul(gate_up).double(), exact, rtol=2 * ONE_STEP, atol=1e-5)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("head_dim", [16, 24, 64, 128])
def test_rotate_and_store_of_bfloat16(kernels: Kernels, head_dim: int, normed: bool) -> None:
    torch.manual_seed(0)
    num_heads, num_kv_heads, slots = 4, 2, torch.tensor([7, 2, 11])
    projected = torch.randn(3, num_heads + 2 * num_kv_heads, head_dim).bfloat16()
    norm = HeadNorm(torch.randn(num_heads + num_kv_heads, head_dim).bfloat16(), 1e-6) if normed else None
    table = rotary_table(inverse_frequencies(head_dim, 1e4), torch.tensor([0, 5, 900]))
    exact_caches, caches = (
        [torch.full((3, 4, num_kv_heads, head_dim), float("nan"), dtype=dtype) for _ in "kv"]
        for dtype in (torch.float32, torch.bfloat16)
    )
    exact_norm = HeadNorm(norm.weight.float(), 1e-6) if norm else None
    exact = rotate_and_store(
        projected.float(), table, exact_norm, key_cache=exact_caches[0], value_cache=exact_caches[1], slot_mapping=slots
    )
    query = kernels.rotate_and_store(
        projected.clone(), table, norm, key_cache=caches[0], value_cache=caches[1], slot_mapping=slots
    )
    torch.testing.assert_close(query.float(), exact, rtol=ONE_STEP, atol=6e-2)
    for cache, exact_cache in zip(caches, exact_caches, strict=True):
        torch.testing.assert_close(cache.float(), exact_cache, rtol=ONE_STEP, atol=6e-2, equal_nan=True)

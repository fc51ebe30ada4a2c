"""Norm, rotary and gate against transformers' modules and float64."""

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rotary import apply_rotary, inverse_frequencies, rotary_table, scale_llama3
from kernels.silu_mul import silu_mul


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

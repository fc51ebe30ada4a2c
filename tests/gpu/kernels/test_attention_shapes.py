"""Attention for the shapes of heads, blocks and caches that models have."""

import pytest
import torch

from kernels.gpu.kernels import gpu_kernels
from tests.support.attention_cases import PagedStep, Sequence64, dense_attention, make_sequence
from tests.support.gpu import eight_bits

pytestmark = pytest.mark.gpu

SHAPES = ((90, 20), (70, 1), (66, 2))


def sequences_with(heads: tuple[int, int, int], scale: float = 1.0) -> list[Sequence64]:
    generator = torch.Generator().manual_seed(0)
    made = [make_sequence(*shape, generator, heads) for shape in SHAPES]
    return [Sequence64(sequence.query, sequence.key * scale, sequence.value * scale) for sequence in made]


@pytest.mark.parametrize("heads", [(9, 3, 64), (8, 2, 128), (7, 1, 128), (4, 2, 256), (3, 3, 80), (32, 1, 16)], ids=str)
def test_head_shapes(device: torch.device, heads: tuple[int, int, int]) -> None:
    sequences = sequences_with(heads)
    actual = PagedStep(sequences, 16, torch.bfloat16, gpu_kernels(8), device).attention()
    exact = torch.cat([dense_attention(sequence) for sequence in sequences])
    torch.testing.assert_close(actual.cpu().double(), exact, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_block_sizes(device: torch.device, block_size: int) -> None:
    sequences = sequences_with((4, 2, 64))
    actual = PagedStep(sequences, block_size, torch.bfloat16, gpu_kernels(8), device).attention()
    exact = torch.cat([dense_attention(sequence) for sequence in sequences])
    torch.testing.assert_close(actual.cpu().double(), exact, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kv_scale", [1.0, 0.125])
def test_fp8_cache(device: torch.device, kv_scale: float) -> None:
    """The cache holds what 8 bits have; the exact result is that of these numbers times the scale."""
    in_cache = [
        Sequence64(sequence.query, eight_bits(sequence.key), eight_bits(sequence.value))
        for sequence in sequences_with((8, 2, 64), 1.0 / kv_scale)
    ]
    step = PagedStep(in_cache, 16, torch.bfloat16, gpu_kernels(8, kv_scale), device)
    step.key_cache, step.value_cache = (cache.to(torch.float8_e4m3fn) for cache in (step.key_cache, step.value_cache))
    scaled = [Sequence64(sequence.query, sequence.key * kv_scale, sequence.value * kv_scale) for sequence in in_cache]
    exact = torch.cat([dense_attention(sequence) for sequence in scaled])
    torch.testing.assert_close(step.attention().cpu().double(), exact, atol=2e-2, rtol=2e-2)

"""Angles of each set of kernels against float64."""

import pytest
import torch

from kernels.rotary import inverse_frequencies
from tests.support.kernel_sets import KERNEL_SETS, NATIVE_SETS, kernel_set
from tests.support.paged_decoder import num_threads


@pytest.mark.parametrize("name", KERNEL_SETS)
@pytest.mark.parametrize("num_rows", [1, 16, 200])
@pytest.mark.parametrize("head_dim", [2, 64, 130])
def test_angles_equal_the_exact_ones(name: str, num_rows: int, head_dim: int) -> None:
    frequencies = inverse_frequencies(head_dim, 1e5)
    positions = torch.arange(num_rows) * 577 % 100_003
    with num_threads(2):
        table = kernel_set(name).rotary_table(frequencies, positions)
    angles = (positions.float()[:, None] * frequencies).double()
    assert table.cos.shape == table.sin.shape == (num_rows, 1, head_dim)
    expected_cos, expected_sin = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), -1)
    torch.testing.assert_close(table.cos[:, 0].double(), expected_cos, atol=2e-7, rtol=0)
    torch.testing.assert_close(table.sin[:, 0].double(), expected_sin, atol=2e-7, rtol=0)
    assert table.cos.is_contiguous()
    assert table.sin.is_contiguous()


@pytest.mark.parametrize("name", NATIVE_SETS)
def test_native_refuses_what_it_would_misread(name: str) -> None:
    with pytest.raises(TypeError, match="float32"):
        kernel_set(name).rotary_table(inverse_frequencies(8, 1e4), torch.tensor([3.0]))

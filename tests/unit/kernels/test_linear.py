"""Linears of each set of kernels against float64, with few rows and many, of even and odd widths."""

from collections.abc import Iterator

import pytest
import torch

from kernels.table import Kernels
from tests.support.kernel_sets import KERNEL_SETS, NATIVE_SETS, kernel_set
from tests.support.paged_decoder import num_threads

WIDTHS = {"small": (5, 32), "odd input": (37, 33), "tails": (70, 24), "like a model's": (192, 96)}


@pytest.fixture(scope="module", params=KERNEL_SETS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernel_set(request.param)


@pytest.fixture(scope="module", params=NATIVE_SETS)
def native(request: pytest.FixtureRequest) -> Kernels:
    return kernel_set(request.param)


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with num_threads(request.param):
        yield


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 8, 17, 55, 56, 57, 130])
def test_equals_the_exact_product(kernels: Kernels, num_rows: int, widths: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    out_width, in_width = widths
    x = torch.randn(num_rows, in_width, generator=generator).bfloat16()
    weight = torch.randn(out_width, in_width, generator=generator).bfloat16()
    bias = torch.randn(out_width, generator=generator).bfloat16()
    product = x.double() @ weight.double().T
    biased = kernels.linear(x, weight, bias)
    assert biased.dtype == torch.bfloat16
    torch.testing.assert_close(biased.double(), product + bias.double(), rtol=2**-8, atol=2e-2)
    torch.testing.assert_close(kernels.linear(x, weight).double(), product, rtol=2**-8, atol=1e-2)
    wide = kernels.linear_float32(x, weight)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), product, rtol=2**-8, atol=1e-2)


def test_native_float32_is_not_rounded(native: Kernels) -> None:
    x, weight = torch.randn(3, 96).bfloat16(), torch.randn(40, 96).bfloat16()
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(native.linear_float32(x, weight).double(), exact, rtol=1e-5, atol=1e-4)


def test_native_reads_only_what_it_is_given(native: Kernels) -> None:
    """Rows before and after are NaN, in the operand and in the weights."""
    for num_rows in (1, 3, 60):
        x = torch.full((num_rows + 2, 30), float("nan")).bfloat16()
        weight = torch.full((21 + 2, 30), float("nan")).bfloat16()
        x[1:-1], weight[1:-1] = 1.0, 0.5
        assert torch.equal(native.linear(x[1:-1], weight[1:-1]).float(), torch.full((num_rows, 21), 15.0))


def test_native_refuses_what_it_would_misread(native: Kernels) -> None:
    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    with pytest.raises(TypeError, match="float32"):
        native.linear(x, weight)
    with pytest.raises(TypeError, match="contiguous"):
        native.linear(x.bfloat16(), weight.bfloat16().T)


@pytest.mark.parametrize("num_rows", [3, 60])
def test_native_rounds_what_is_no_number_or_too_large_as_torch_does(native: Kernels, num_rows: int) -> None:
    x, weight = torch.zeros(num_rows, 32).bfloat16(), torch.eye(32).bfloat16()
    x[:3, 0] = torch.tensor([torch.nan, torch.inf, 3.0e38])
    x[0, 1:], x[1, 1:], weight[0, 0] = 1.0, 0.0, 1.5
    expected = torch.tensor([torch.nan, torch.inf, torch.inf])
    torch.testing.assert_close(native.linear(x, weight)[:3, 0].float(), expected, equal_nan=True)

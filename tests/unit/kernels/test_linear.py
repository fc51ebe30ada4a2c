"""Linears of each set of kernels against float64, with few rows and many, of even and odd widths."""

from collections.abc import Iterator

import pytest
import torch

from kernels.table import Kernels
from tests.support.kernel_sets import KERNEL_SETS, kernel_set
from tests.support.paged_decoder import num_threads

WIDTHS = {"small": (5, 32), "odd input": (37, 33), "tails": (70, 24), "like a model's": (192, 96)}


@pytest.fixture(scope="module", params=KERNEL_SETS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
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


def test_native_float32_is_not_rounded() -> None:
    kernels = kernel_set("native")
    x, weight = torch.randn(3, 96).bfloat16(), torch.randn(40, 96).bfloat16()
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(kernels.linear_float32(x, weight).double(), exact, rtol=1e-5, atol=1e-4)


def test_native_reads_only_what_it_is_given() -> None:
    """Rows before and after are NaN, in the operand and in the weights."""
    kernels = kernel_set("native")
    for num_rows in (3, 60):
        x = torch.full((num_rows + 2, 30), float("nan")).bfloat16()
        weight = torch.full((21 + 2, 30), float("nan")).bfloat16()
        x[1:-1], weight[1:-1] = 1.0, 0.5
        assert torch.equal(kernels.linear(x[1:-1], weight[1:-1]).float(), torch.full((num_rows, 21), 15.0))


def test_native_refuses_what_it_would_misread() -> None:
    kernels = kernel_set("native")
    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    with pytest.raises(TypeError, match="float32"):
        kernels.linear(x, weight)
    with pytest.raises(TypeError, match="contiguous"):
        kernels.linear(x.bfloat16(), weight.bfloat16().T)

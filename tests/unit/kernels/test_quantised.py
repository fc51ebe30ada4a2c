"""Quantised weights: what rounding costs at most, and each set's products against float64."""

from collections.abc import Iterator

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.quantised import (
    GROUP,
    QuantisedWeight,
    WeightFormat,
    dequantise,
    embed,
    quantise,
    quantised_shapes,
)
from kernels.table import Kernels, torch_kernels
from tests.support.kernel_sets import KERNEL_SETS, NATIVE_SETS, kernel_set
from tests.support.paged_decoder import num_threads

SHAPES = {"one group": (16, 32), "small": (5, 7), "odd": (37, 33), "like a model's": (192, 96), "wide": (48, 544)}
LEVELS = {WeightFormat.INT8: 254, WeightFormat.INT4: 15}
GGUF_KINDS = {WeightFormat.INT8: gguf.GGMLQuantizationType.Q8_0, WeightFormat.INT4: gguf.GGMLQuantizationType.Q4_1}
FLOAT16_EPSILON = 2**-10


@pytest.fixture(params=WeightFormat)
def weight_format(request: pytest.FixtureRequest) -> WeightFormat:
    chosen: WeightFormat = request.param
    return chosen


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    chosen: tuple[int, int] = request.param
    return chosen


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


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def in_groups(values: torch.Tensor) -> torch.Tensor:
    """``[rows, groups, GROUP]``, padded with zeros."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % GROUP))
    return padded.unflatten(1, (-1, GROUP))


def rounded_to_bytes(x: torch.Tensor) -> torch.Tensor:
    """Each group of a row in multiples of a 127th of its largest value, as native kernels take it; float64."""
    groups = in_groups(x.float())
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, torch.tensor(127.0) / largest, 0.0)
    rounded = (groups * inverse).round().double() * (largest / 127).double()
    return rounded.flatten(1)[:, : x.shape[1]]


def test_the_shapes_are_those_announced(weight_format: WeightFormat, shape: tuple[int, int]) -> None:
    made, announced = quantise(drawn(*shape), weight_format), quantised_shapes(weight_format, shape)
    assert (tuple(made.digits.shape), tuple(made.scales.shape)) == (announced.digits, announced.scales)
    assert (made.digits.dtype, made.scales.dtype) == (torch.uint8, torch.float16)
    assert made.digits.is_contiguous()
    assert made.scales.is_contiguous()


@settings(max_examples=60)
@given(
    out_width=st.integers(1, 40),
    in_width=st.integers(1, 100),
    magnitude=st.sampled_from([1e-30, 1e-4, 0.02, 1.0, 3e3]),
    offset=st.sampled_from([0.0, 5.0]),
    chosen=st.sampled_from(WeightFormat),
)
def test_no_value_is_further_than_half_a_step(
    out_width: int, in_width: int, magnitude: float, offset: float, chosen: WeightFormat
) -> None:
    weight = (drawn(out_width, in_width) + offset) * magnitude
    error = in_groups((dequantise(quantise(weight, chosen), torch.float32) - weight).abs())
    groups = in_groups(weight)
    largest = groups.abs().amax(-1, keepdim=True)
    spread = 2 * largest if chosen is WeightFormat.INT8 else (groups.amax(-1) - groups.amin(-1))[..., None]
    rounding_of_scales = 3 * FLOAT16_EPSILON * largest
    smallest_float16 = 2**-24 * LEVELS[chosen]
    assert (error <= 0.5 * spread / LEVELS[chosen] + rounding_of_scales + smallest_float16).all()


def test_quantising_again_changes_nothing(weight_format: WeightFormat, shape: tuple[int, int]) -> None:
    once = dequantise(quantise(drawn(*shape), weight_format), torch.float32)
    assert torch.equal(dequantise(quantise(once, weight_format), torch.float32), once)


def test_values_of_a_gguf_of_the_same_kind_come_back(weight_format: WeightFormat) -> None:
    """Against gguf's own quantisation."""
    kind = GGUF_KINDS[weight_format]
    theirs = torch.from_numpy(gguf.dequantize(gguf.quantize(drawn(64, 256).numpy() * 0.05, kind), kind))
    ours = dequantise(quantise(theirs, weight_format), torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_groups_of_one_value_and_of_zeros(weight_format: WeightFormat) -> None:
    weight = torch.zeros(16, 64)
    weight[3, :32], weight[4, 32:] = 0.5, -2.0
    made = dequantise(quantise(weight, weight_format), torch.float32)
    torch.testing.assert_close(made, weight, rtol=FLOAT16_EPSILON, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_what_has_no_scale_is_refused(weight_format: WeightFormat, bad: float) -> None:
    weight = drawn(16, 64)
    weight[3, 40] = bad
    with pytest.raises(ValueError, match="not finite, or too large"):
        quantise(weight, weight_format)


def test_rows_of_a_table(weight_format: WeightFormat, shape: tuple[int, int]) -> None:
    table = quantise(drawn(*shape), weight_format)
    token_ids = torch.tensor([shape[0] - 1, 0, 2, 2])
    assert torch.equal(embed(token_ids, table, torch.bfloat16), dequantise(table, torch.bfloat16)[token_ids])


@pytest.mark.parametrize("num_rows", [1, 5, 8, 70])
def test_equals_the_exact_product(
    kernels: Kernels, num_rows: int, shape: tuple[int, int], weight_format: WeightFormat
) -> None:
    """To bfloat16's precision where x is not rounded; much nearer to the product of the rounded x where it is."""
    x, weight = drawn(num_rows, shape[1]).bfloat16(), quantise(drawn(*shape), weight_format)
    bias = drawn(shape[0]).bfloat16()
    product = x.double() @ dequantise(weight, torch.float64).T
    rounding = 0.02 * x.float().norm(dim=-1).max().item()
    biased = kernels.linear(x, weight, bias)
    assert biased.dtype == torch.bfloat16
    torch.testing.assert_close(biased.double(), product + bias.double(), rtol=2**-8, atol=2e-2 + rounding)
    torch.testing.assert_close(kernels.linear(x, weight).double(), product, rtol=2**-8, atol=1e-2 + rounding)
    wide = kernels.linear_float32(x, weight)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), product, rtol=2**-8, atol=1e-2 + rounding)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("num_rows", [2, 9, 64])
def test_native_rounds_x_and_nothing_else(
    native: Kernels, num_rows: int, shape: tuple[int, int], weight_format: WeightFormat
) -> None:
    x, weight = drawn(num_rows, shape[1]).bfloat16(), quantise(drawn(*shape), weight_format)
    exact = rounded_to_bytes(x) @ dequantise(weight, torch.float64).T
    torch.testing.assert_close(native.linear_float32(x, weight).double(), exact, rtol=1e-5, atol=1e-4)


def test_the_torch_product_is_that_of_the_dequantised_weight(weight_format: WeightFormat) -> None:
    x, weight = drawn(5, 96), quantise(drawn(40, 96), weight_format)
    expected = x @ dequantise(weight, torch.float32).T
    assert torch.equal(torch_kernels().linear(x, weight), expected)


def test_native_reads_only_what_it_is_given(native: Kernels, weight_format: WeightFormat) -> None:
    """Rows of x before and after are NaN; so is what a group's end has beyond the row."""
    weight = quantise(torch.full((21, 30), 0.5), weight_format)
    for num_rows in (3, 90):
        x = torch.full((num_rows + 2, 30), float("nan")).bfloat16()
        x[1:-1] = 1.0
        result = native.linear_float32(x[1:-1], weight)
        torch.testing.assert_close(result, torch.full((num_rows, 21), 15.0), rtol=1e-3, atol=0)


def test_native_takes_rows_of_zeros_and_large_values(native: Kernels, weight_format: WeightFormat) -> None:
    x, weight = torch.zeros(3, 64).bfloat16(), quantise(drawn(16, 64), weight_format)
    x[1, 5], x[2, 63] = 1e30, -1e-30
    exact = x.double() @ dequantise(weight, torch.float64).T
    torch.testing.assert_close(native.linear_float32(x, weight).double(), exact, rtol=1e-2, atol=1e-34)


def test_native_refuses_what_it_would_misread(native: Kernels, weight_format: WeightFormat) -> None:
    good = quantise(drawn(16, 32), weight_format)
    wrong = QuantisedWeight(good.format, good.shape, good.digits, good.scales.float())
    with pytest.raises(TypeError, match="float16"):
        native.linear(drawn(2, 32).bfloat16(), wrong)

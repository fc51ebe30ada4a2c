"""The weight segment's layout."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.kv.layout import DTYPE_BYTES
from tandem.model.config import WeightManifest
from tandem.model.family import Parameter
from tandem.model.manifest import build_manifest
from tandem.model.quantisation import QUANTIZATIONS, ParameterKind

SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)


@given(shapes=st.lists(SHAPES, max_size=12), dtype=st.sampled_from(sorted(DTYPE_BYTES)))
def test_parameters_lie_in_order_aligned_and_apart(shapes: list[tuple[int, ...]], dtype: str) -> None:
    parameters = [Parameter(f"p{number}", shape, ("x",)) for number, shape in enumerate(shapes)]
    manifest = build_manifest(parameters, dtype)
    assert list(manifest.tensors) == [parameter.name for parameter in parameters]
    end_bytes = 0
    for parameter in parameters:
        place = manifest.tensors[parameter.name]
        assert place.shape == parameter.shape
        assert place.offset_bytes % 64 == 0
        assert end_bytes <= place.offset_bytes < end_bytes + 64
        end_bytes = place.offset_bytes + prod(place.shape) * DTYPE_BYTES[dtype]
    assert end_bytes <= manifest.total_bytes < end_bytes + 64
    assert manifest.total_bytes % 64 == 0


@pytest.mark.parametrize(("dtype", "second"), [("bfloat16", 64), ("float32", 128)])
def test_numbers(dtype: str, second: int) -> None:
    manifest = build_manifest([Parameter("a", (3, 7), ("a",)), Parameter("b", (1,), ("b",))], dtype)
    assert manifest.tensors["b"].offset_bytes == second
    assert manifest.total_bytes == second + 64


QUANTISABLE = (
    Parameter("table", (100, 64), ("t",), ParameterKind.VOCABULARY),
    Parameter("norm", (64,), ("n",)),
    Parameter("linear", (48, 80), ("l",), ParameterKind.LINEAR),
)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_it_travels_as_json(quantization: str) -> None:
    manifest = build_manifest(QUANTISABLE, "bfloat16", quantization)
    assert WeightManifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("quantization", "table_format", "linear_format", "linear_bytes"),
    [("int8", "int8", "int8", 48 * 96 + 48 * 3 * 2), ("int4", "int8", "int4", 48 * 96 // 2 + 48 * 3 * 2 * 2)],
)
def test_quantised_bytes(quantization: str, table_format: str, linear_format: str, linear_bytes: int) -> None:
    """112 rows of whole panels; 96 columns of whole groups. A scale has two bytes, and so has a minimum."""
    manifest = build_manifest(QUANTISABLE, "bfloat16", quantization)
    table, norm, linear = manifest.tensors.values()
    assert (table.format, norm.format, linear.format) == (table_format, "", linear_format)
    assert (table.offset_bytes, table.scales_offset_bytes) == (0, 112 * 64)
    assert norm.offset_bytes == 112 * 64 + 112 * 2 * 2
    assert linear.offset_bytes == norm.offset_bytes + 64 * 2
    assert manifest.total_bytes == linear.offset_bytes + -(-linear_bytes // 64) * 64
    assert linear.scales_offset_bytes % 64 == 0
    assert manifest.stored_dtype == f"bfloat16+{quantization}"


def test_plain_weights_have_a_plain_name() -> None:
    assert build_manifest(QUANTISABLE, "float32").stored_dtype == "float32"

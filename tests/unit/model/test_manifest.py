"""The weight segment's layout."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.kv.layout import DTYPE_BYTES
from tandem.model.config import WeightManifest
from tandem.model.family import Parameter
from tandem.model.manifest import build_manifest

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


def test_it_travels_as_json() -> None:
    manifest = build_manifest([Parameter("a", (3, 7), ("a",))], "bfloat16")
    assert WeightManifest.from_json(manifest.to_json()) == manifest

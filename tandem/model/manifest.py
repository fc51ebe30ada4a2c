"""Where each parameter lies in the weight segment."""

from collections.abc import Sequence
from math import prod

from kernels.quantised import WeightFormat, quantised_shapes
from tandem.kv.layout import DTYPE_BYTES
from tandem.model.config import TensorPlace, WeightManifest
from tandem.model.family import Parameter
from tandem.model.quantisation import NONE, QUANTIZATIONS

ALIGNMENT_BYTES = 64  # a cache line, and the widest vector load


def build_manifest(parameters: Sequence[Parameter], dtype: str, quantization: str = NONE) -> WeightManifest:
    """Parameters in their order, one after another.

    `dtype` is a key of `tandem.kv.layout.DTYPE_BYTES`, `quantization` one of `QUANTIZATIONS`.
    """
    places: dict[str, TensorPlace] = {}
    end_bytes = 0
    for parameter in parameters:
        weight_format = QUANTIZATIONS[quantization].get(parameter.kind)
        if weight_format is None:
            places[parameter.name] = TensorPlace(parameter.shape, end_bytes)
            end_bytes += _aligned(prod(parameter.shape) * DTYPE_BYTES[dtype])
        else:
            places[parameter.name], end_bytes = _quantised(parameter, weight_format, end_bytes)
    return WeightManifest(dtype, end_bytes, places, quantization)


def _quantised(parameter: Parameter, weight_format: WeightFormat, offset_bytes: int) -> tuple[TensorPlace, int]:
    """Its place from `offset_bytes` on, and its end."""
    out_width, in_width = parameter.shape
    shapes = quantised_shapes(weight_format, (out_width, in_width))
    scales_bytes = offset_bytes + _aligned(prod(shapes.digits))
    end_bytes = scales_bytes + _aligned(prod(shapes.scales) * DTYPE_BYTES["float16"])
    return TensorPlace(parameter.shape, offset_bytes, weight_format.value, scales_bytes), end_bytes


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

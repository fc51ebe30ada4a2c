"""The weight segment's parameters as views of a mapping of it."""

import torch

from kernels.quantised import QuantisedWeight, Weight, WeightFormat, quantised_shapes
from tandem.device.memory import MappedSegment
from tandem.model.config import TensorPlace, WeightManifest


def weight_views(segment: MappedSegment, manifest: WeightManifest) -> dict[str, Weight]:
    """Every parameter where `manifest` says that it lies; no byte is copied."""
    return {name: _view(segment, manifest.dtype, place) for name, place in manifest.tensors.items()}


def _view(segment: MappedSegment, dtype: str, place: TensorPlace) -> Weight:
    if not place.format:
        return segment.tensor(dtype, place.shape, place.offset_bytes)
    weight_format, (out_width, in_width) = WeightFormat(place.format), place.shape
    shapes = quantised_shapes(weight_format, (out_width, in_width))
    digits: torch.Tensor = segment.tensor("uint8", shapes.digits, place.offset_bytes)
    scales: torch.Tensor = segment.tensor("float16", shapes.scales, place.scales_offset_bytes)
    return QuantisedWeight(weight_format, (out_width, in_width), digits, scales)

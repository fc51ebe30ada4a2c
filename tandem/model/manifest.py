"""Where each parameter lies in the weight segment."""

from collections.abc import Sequence
from math import prod

from tandem.kv.layout import DTYPE_BYTES
from tandem.model.config import TensorPlace, WeightManifest
from tandem.model.family import Parameter

ALIGNMENT_BYTES = 64  # a cache line, and the widest vector load


def build_manifest(parameters: Sequence[Parameter], dtype: str) -> WeightManifest:
    """Parameters in their order, one after another; `dtype` is a key of `tandem.kv.layout.DTYPE_BYTES`."""
    places: dict[str, TensorPlace] = {}
    end_bytes = 0
    for parameter in parameters:
        places[parameter.name] = TensorPlace(parameter.shape, end_bytes)
        end_bytes += _aligned(prod(parameter.shape) * DTYPE_BYTES[dtype])
    return WeightManifest(dtype, end_bytes, places)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

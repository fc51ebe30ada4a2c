"""Rope scaling as GGUF keeps it. No torch here.

llama.cpp's converter writes Llama 3's scaling as the finished divisor of each frequency (``rope_freqs.weight``), not
as its parameters. They are recovered from the largest divisor, and taken only if they give all the others again.
Source: Llama 3.1's rope scaling, as in Hugging Face's ``rope_type: llama3``.
"""

import math

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from tandem.errors import ModelFormatError, UnsupportedModelError
from tandem.model.config import RopeScaling
from tandem.model.fields import Fields
from tandem.model.gguf_header import GgufHeader, GgufTensor

_LLAMA3_LOW_FREQ_FACTOR = 1.0
_LLAMA3_HIGH_FREQ_FACTOR = 4.0
_LLAMA3_ORIGINAL_CONTEXT = 8192
_DIVISORS = "rope_freqs.weight"


def read_rope_scaling(
    fields: Fields, architecture: str, header: GgufHeader, rope_theta: float, head_dim: int
) -> RopeScaling | None:
    """None where rope is not scaled. UnsupportedModelError for every scaling but Llama 3's."""
    linear = fields.number(f"{architecture}.rope.scale_linear", 1.0)  # the older key
    factor = fields.number(f"{architecture}.rope.scaling.factor", linear)
    kind = fields.text(f"{architecture}.rope.scaling.type", "none" if factor in (0.0, 1.0) else "linear")
    if kind != "none":
        raise UnsupportedModelError(f"{fields.origin}: rope scaling {kind!r} is not built; Llama 3's is")
    tensor = header.tensors.get(_DIVISORS)
    return None if tensor is None else _from_divisors(header, tensor, rope_theta, head_dim)


def llama3_divisors(scaling: RopeScaling, rope_theta: float, head_dim: int) -> npt.NDArray[np.float64]:
    """What each frequency is divided by, ``[head_dim / 2]``."""
    wavelengths = 2 * math.pi * rope_theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling.original_max_position_embeddings / wavelengths
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return 1.0 / ((1.0 - kept) / scaling.factor + kept)


def _from_divisors(header: GgufHeader, tensor: GgufTensor, rope_theta: float, head_dim: int) -> RopeScaling:
    if tensor.kind is not GGMLQuantizationType.F32 or tensor.shape != (head_dim // 2,) or rope_theta <= 0:
        raise ModelFormatError(f"{header.path}: {_DIVISORS!r} does not fit rope over {head_dim} dimensions")
    divisors = np.fromfile(header.path, "<f4", head_dim // 2, offset=tensor.offset_bytes)
    scaling = RopeScaling(
        float(divisors.max()), _LLAMA3_LOW_FREQ_FACTOR, _LLAMA3_HIGH_FREQ_FACTOR, _LLAMA3_ORIGINAL_CONTEXT
    )
    usable = bool(np.isfinite(divisors).all()) and scaling.factor > 0
    if not usable or not np.allclose(divisors, llama3_divisors(scaling, rope_theta, head_dim), rtol=1e-4):
        raise UnsupportedModelError(f"{header.path}: the rope scaling in {_DIVISORS!r} is not Llama 3's")
    return scaling

"""Weights as small integers in groups that share a scale, and the products with them.

A group is `GROUP` neighbours along the input dimension; a weight is ``scale * digit + minimum``, both of them float16.
int8 is symmetric (its minimum is -128 scales), as GGUF's Q8_0; int4 has a minimum of its own, as GGUF's Q4_1.

The layout is for vectors whose lanes are outputs: outputs in panels of `PANEL`, the input dimension in quads of
neighbours. Outputs are padded to panels, inputs to groups, both with zeros. kernels/native/quantised.h reads it too.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch.nn import functional

GROUP = 32
PANEL = 16
QUAD = 4
_QUADS = GROUP // QUAD
_INT8_ZERO = 128
_INT8_LARGEST = 127
_INT4_LARGEST = 15
_INT4_BITS = 4


class WeightFormat(StrEnum):
    """How a quantised weight's digits are stored."""

    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class QuantisedShapes:
    """Of the tensors that make up one weight: uint8 digits and float16 scales."""

    digits: tuple[int, ...]
    scales: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """``[out_width, in_width]`` as digits and scales, of the shapes that `quantised_shapes` says.

    `digits`: ``[panels, groups, quads, PANEL, QUAD]`` uint8; int4 has two quads in one, number q in the low halves of
    the bytes and number q + 4 in the high ones. `scales`: ``[panels, groups, kinds, PANEL]`` float16; int4 has two
    kinds, scales and minima.
    """

    format: WeightFormat
    shape: tuple[int, int]
    digits: torch.Tensor
    scales: torch.Tensor

    @property
    def nbytes(self) -> int:
        """As of a tensor."""
        return self.digits.nbytes + self.scales.nbytes


Weight = torch.Tensor | QuantisedWeight
"""What a matrix product takes: ``[out_width, in_width]``, plain or quantised."""


def quantised_shapes(weight_format: WeightFormat, shape: tuple[int, int]) -> QuantisedShapes:
    """For a weight of `shape`."""
    panels, groups = -(-shape[0] // PANEL), -(-shape[1] // GROUP)
    if weight_format is WeightFormat.INT8:
        return QuantisedShapes((panels, groups, _QUADS, PANEL, QUAD), (panels, groups, 1, PANEL))
    return QuantisedShapes((panels, groups, _QUADS // 2, PANEL, QUAD), (panels, groups, 2, PANEL))


def quantise(weight: torch.Tensor, weight_format: WeightFormat) -> QuantisedWeight:
    """Rounds ``[out_width, in_width]`` of any float dtype. ValueError: not finite, or too large for a float16 scale."""
    out_width, in_width = weight.shape
    padded = functional.pad(weight.float(), (0, -in_width % GROUP, 0, -out_width % PANEL))
    groups = padded.reshape(padded.shape[0], -1, GROUP)  # [outputs, groups, GROUP]
    digits, scales = _int8_digits(groups) if weight_format is WeightFormat.INT8 else _int4_digits(groups)
    if not bool(scales.isfinite().all()):
        raise ValueError("values are not finite, or too large for a float16 scale")
    panels = digits.to(torch.uint8).view(-1, PANEL, groups.shape[1], _QUADS, QUAD)
    in_panels = panels.permute(0, 2, 3, 1, 4)  # [panels, groups, quads, PANEL, QUAD]
    if weight_format is WeightFormat.INT4:
        low, high = in_panels.chunk(2, dim=2)
        in_panels = low | high << _INT4_BITS
    scales_in_panels = scales.view(-1, PANEL, *scales.shape[1:]).permute(0, 2, 3, 1)
    return QuantisedWeight(weight_format, (out_width, in_width), in_panels.contiguous(), scales_in_panels.contiguous())


def dequantise(weight: QuantisedWeight, dtype: torch.dtype) -> torch.Tensor:
    """``[out_width, in_width]``, computed in float32 and rounded once."""
    digits = weight.digits.permute(0, 3, 1, 2, 4).flatten(0, 1)  # [outputs, groups, quads, QUAD]
    scales = weight.scales.permute(0, 3, 1, 2).flatten(0, 1)  # [outputs, groups, kinds]
    out_width, in_width = weight.shape
    return _values(weight.format, digits, scales)[:out_width, :in_width].to(dtype)


def dequantise_rows(weight: QuantisedWeight, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Those of `rows` ``[num_rows]`` int64: ``[num_rows, in_width]``."""
    panels, lanes = rows // PANEL, rows % PANEL
    values = _values(weight.format, weight.digits[panels, :, :, lanes], weight.scales[panels, :, :, lanes])
    return values[:, : weight.shape[1]].to(dtype)


def embed(token_ids: torch.Tensor, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a table ``[vocab_size, width]``: ``[num_tokens, width]``; a plain table's have its own dtype."""
    if isinstance(weight, QuantisedWeight):
        return dequantise_rows(weight, token_ids, dtype)
    return functional.embedding(token_ids, weight)


def _int8_digits(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits of ``[outputs, groups, GROUP]``, and scales ``[outputs, groups, 1]``."""
    scales = (groups.abs().amax(-1, keepdim=True) / _INT8_LARGEST).half()
    rounded = (groups / _divisors(scales)).round().clamp(-_INT8_LARGEST, _INT8_LARGEST)
    return rounded + _INT8_ZERO, scales


def _int4_digits(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits of ``[outputs, groups, GROUP]``, and scales and minima ``[outputs, groups, 2]``."""
    lowest, highest = groups.aminmax(dim=-1, keepdim=True)
    scales, minima = ((highest - lowest) / _INT4_LARGEST).half(), lowest.half()
    rounded = ((groups - minima) / _divisors(scales)).round().clamp(0, _INT4_LARGEST)
    return rounded, torch.cat((scales, minima), -1)


def _divisors(scales: torch.Tensor) -> torch.Tensor:
    """A group whose scale is zero has one value: whatever its digits are, they count for nothing."""
    return torch.where(scales == 0, 1.0, scales.float())


def _values(weight_format: WeightFormat, digits: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``[rows, groups, quads, QUAD]`` digits as float32 weights ``[rows, groups * GROUP]``."""
    if weight_format is WeightFormat.INT8:
        signed = digits.flatten(2).float() - _INT8_ZERO  # [rows, groups, GROUP]
        return (signed * scales.float()).flatten(1)
    halves = torch.cat((digits & _INT4_LARGEST, digits >> _INT4_BITS), dim=2).flatten(2).float()
    scale, minimum = scales.float().chunk(2, dim=-1)
    return torch.addcmul(minimum, halves, scale).flatten(1)

"""Several arrays in one buffer of bytes, so that one copy takes them all to the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

ALIGNMENT_BYTES = 16  # what Triton compiles for: of other places it would compile every kernel once more


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a packing."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Without the gap behind it."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Packing:
    """Fields one after another, each aligned."""

    fields: tuple[Field, ...]

    @property
    def num_bytes(self) -> int:
        """Of a buffer for all fields."""
        return self._offsets()[-1]

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each field's array by its name, over `buffer`: uint8 ``[num_bytes]``."""
        return {
            field.name: buffer[offset : offset + field.num_bytes].view(field.dtype).view(field.shape)
            for field, offset in zip(self.fields, self._offsets(), strict=False)
        }

    def _offsets(self) -> Sequence[int]:
        """Of each field, and the end."""
        offsets = [0]
        for field in self.fields:
            end = offsets[-1] + field.num_bytes
            offsets.append(-(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        return offsets

"""The library's angles, behind the signature of `kernels.rotary.rotary_table`."""

from ctypes import CDLL
from dataclasses import dataclass

import torch

from kernels.native.weights import checked
from kernels.rotary import RotaryTable


@dataclass(frozen=True, slots=True)
class NativeRotary:
    """One call where torch takes a dozen: in a decode step these are most of what they cost."""

    library: CDLL

    def rotary_table(self, frequencies: torch.Tensor, positions: torch.Tensor) -> RotaryTable:
        """See `kernels.rotary.rotary_table`."""
        num_rows, num_pairs = positions.numel(), frequencies.numel()
        cos, sin = torch.empty(2, num_rows, 1, 2 * num_pairs).unbind()
        self.library.tandem_rotary_table(
            checked(frequencies, torch.float32).data_ptr(),
            num_pairs,
            checked(positions, torch.int64).data_ptr(),
            num_rows,
            cos.data_ptr(),
            sin.data_ptr(),
        )
        return RotaryTable(cos, sin)

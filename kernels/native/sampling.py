"""Tokens drawn by the library, behind the signature of `kernels.draw_tokens.draw_tokens`; of float32 logits."""

from collections.abc import Sequence
from ctypes import CDLL, Structure, c_double, c_float, c_int64, c_uint64
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tandem.types import SamplingSpec


class DrawRow(Structure):
    """Of sampling.h."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("top_p", c_double),
        ("min_p", c_double),
        ("top_k", c_int64),
        ("seed", c_uint64),
        ("position", c_uint64),
        ("temperature", c_float),
    ]


@dataclass(frozen=True, slots=True)
class NativeSampling:
    """One row is one thread's work, whatever the number of threads."""

    library: CDLL

    def draw_tokens(
        self, logits: torch.Tensor, samplings: Sequence[SamplingSpec], positions: Sequence[int]
    ) -> list[int]:
        """Rows of logits may lie anywhere; within a row they must be neighbours. TypeError: they are not."""
        if logits.dtype != torch.float32 or logits.stride(1) != 1:
            raise TypeError(f"{logits.dtype} of strides {logits.stride()} is not rows of float32")
        num_rows, vocab_size = logits.shape
        rows = (DrawRow * num_rows)(*map(_row, samplings, positions))
        token_ids = (c_int64 * num_rows)()
        self.library.tandem_draw_tokens(logits.data_ptr(), logits.stride(0), num_rows, vocab_size, rows, token_ids)
        return list(token_ids)


def _row(sampling: SamplingSpec, position: int) -> DrawRow:
    """ctypes takes the low 64 bits of a seed, as `kernels.philox` does."""
    return DrawRow(sampling.top_p, sampling.min_p, sampling.top_k, sampling.seed, position, sampling.temperature)

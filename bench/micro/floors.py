"""What this machine can do at best: reading memory, and multiplying matrices."""

import time
from collections.abc import Callable

import torch

READ_BYTES = 512 << 20  # well beyond any cache
GEMM_SIDE = 2048


class FloorProbes:
    """Both measurements, over operands made once. Called on the thread that also computes steps."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._read = torch.ones(READ_BYTES // 4, dtype=torch.float32)
        self._left = torch.ones(GEMM_SIDE, GEMM_SIDE, dtype=dtype)
        self._right = torch.ones(GEMM_SIDE, GEMM_SIDE, dtype=dtype)

    def read_gb_per_s(self) -> float:
        """The faster of two operators that read everything once and write nothing."""
        matrix = self._read.view(-1, 4096)
        vector = self._read[:4096]
        seconds = min(_seconds(self._read.sum), _seconds(lambda: torch.mv(matrix, vector)))
        return READ_BYTES / seconds / 1e9

    def gemm_gflop_per_s(self) -> float:
        """Of a square product in the model's dtype."""
        return 2 * GEMM_SIDE**3 / _seconds(lambda: self._left @ self._right) / 1e9


def _seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s

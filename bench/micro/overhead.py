"""How much of a decode step is not the model's own operators: batches as tensors, drawing, Python between the calls."""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from statistics import median
from typing import Any

import torch

from bench.micro.steps import StepBench, open_steps
from bench.micro.table import StepOverhead, StepShape
from kernels.choice import KernelChoice, choose_kernels
from kernels.table import Kernels
from tandem.rpc.memd_client import MemdClient
from tandem.types import Phase

BATCHES = (1, 8, 16)
CONTEXT = 256
MS = 1e3
# A plan says how to compute, angles are an input, a maker makes an operator, and a draw comes after the model.
NOT_OPERATORS = ("name", "plan_attention", "rotary_table", "fuse_layers", "draw_tokens", "pause")


class OperatorTime:
    """Counts the time within a set's operators; one that calls another counts once."""

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._now_s = now_s
        self._seconds = 0.0
        self._depth = 0

    def choose(self, dtype: torch.dtype) -> KernelChoice:
        """As `choose_kernels`, the operators counted."""
        choice = choose_kernels(dtype)
        return KernelChoice(self.counted(choice.kernels), choice.reason)

    def counted(self, kernels: Kernels) -> Kernels:
        """The same set; of a fused operator, what `fuse_layers` makes is counted."""
        operators: dict[str, Any] = {
            field.name: self._timed(getattr(kernels, field.name))
            for field in fields(kernels)
            if field.name not in NOT_OPERATORS
        }
        return replace(kernels, **operators, fuse_layers=self._counted_fuse(kernels.fuse_layers))

    def take_ms(self) -> float:
        """Since the last time."""
        taken_ms, self._seconds = self._seconds * MS, 0.0
        return taken_ms

    def _counted_fuse(self, fuse: Callable[..., Any] | None) -> Callable[..., Any] | None:
        return None if fuse is None else lambda stack: self._timed(fuse(stack))

    def _timed(self, operator: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            started_s = self._now_s()
            try:
                return operator(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._seconds += self._now_s() - started_s

        return run


async def measure_overhead(client: MemdClient, threads: Sequence[int], num_steps: int) -> tuple[StepOverhead, ...]:
    """Of decode steps at `CONTEXT`, by threads and batch; the pool must hold the largest."""
    counter = OperatorTime()
    async with open_steps(client, counter.choose) as bench:
        return tuple([await _overhead(bench, counter, shape, num_steps) for shape in overhead_shapes(threads)])


def overhead_shapes(threads: Sequence[int]) -> tuple[StepShape, ...]:
    """What is measured."""
    return tuple(StepShape(Phase.DECODE, count, batch, 1, CONTEXT) for count in threads for batch in BATCHES)


async def _overhead(bench: StepBench, counter: OperatorTime, shape: StepShape, num_steps: int) -> StepOverhead:
    """After one step that is not counted."""
    await bench.step_ms(shape)
    counter.take_ms()
    steps = [(await bench.step_ms(shape), counter.take_ms()) for _ in range(num_steps)]
    step_ms, operators_ms = (median(values) for values in zip(*steps, strict=True))
    share = median(1 - inside_ms / whole_ms for whole_ms, inside_ms in steps)
    return StepOverhead(shape, step_ms, operators_ms, share)

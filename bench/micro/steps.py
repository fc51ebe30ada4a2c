"""Step times as a phase has them: memd's segments mapped, steps run by the phases' own stepper.

All shapes are measured once a round, floors too, so that a disturbance falls on everything alike.
"""

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from bench.micro.floors import FloorProbes
from bench.micro.shapes import floor_ms
from bench.micro.table import Floor, ModelFacts, StepShape, StepTime
from kernels.choice import KernelChoice, choose_kernels
from kernels.native.team import place_team
from tandem.device.cpu.cores import CoreShare
from tandem.device.cpu.team import use_share
from tandem.device.memory_backends import IMPORTERS, SegmentImporter
from tandem.kv.layout import KvLayout, num_blocks_for
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.phase.stepper import StepPart, Stepper, StepResult
from tandem.phase.storage import MappedModel, map_model
from tandem.rpc.memd_client import MemdClient
from tandem.runner.sampler import Draw
from tandem.types import Fingerprint, Phase, SamplingSpec

GREEDY = SamplingSpec(temperature=0.0)
TOKEN_ID = 100
MS = 1e3

Turn = Callable[[], contextlib.AbstractContextManager[None]]


class StepBench:
    """A model over a running memd's segments."""

    def __init__(
        self, mapped: MappedModel, config: ModelConfig, layout: KvLayout, turn: Turn = contextlib.nullcontext
    ) -> None:
        """`turn` is entered for each step, as a partition backend's is."""
        self.config = config
        self.layout = layout
        self._mapped = mapped  # holds the mappings that the runner computes over
        self._stepper = Stepper(mapped.steps, turn)
        self._cores = sorted(os.sched_getaffinity(0))
        self._probes = FloorProbes(getattr(torch, layout.dtype))

    async def floor(self, num_threads: int) -> Floor:
        """One round's."""
        await self.use_threads(num_threads)
        read = await self._stepper.run_in_thread(self._probes.read_gb_per_s)
        gemm = await self._stepper.run_in_thread(self._probes.gemm_gflop_per_s)
        return Floor(num_threads, read, gemm)

    async def step_ms(self, shape: StepShape) -> float:
        """One step, from the loop and back to it."""
        await self.use_threads(shape.num_threads)
        parts = step_parts(shape, self.layout.block_size)
        started_s = time.perf_counter()
        await self.step(parts)
        return (time.perf_counter() - started_s) * MS

    async def step(self, parts: Sequence[StepPart]) -> Sequence[StepResult]:
        """As of `Stepper`."""
        return await self._stepper.step(parts)

    async def use_threads(self, num_threads: int) -> None:
        """From the next step on, each on a core of its own, as in the phases."""
        share = CoreShare(tuple(self._cores[:num_threads]), num_threads)
        await self.run_in_thread(partial(use_share, share, place_team))

    async def run_in_thread(self, work: Callable[[], object]) -> None:
        """Between two steps, on their thread."""
        await self._stepper.run_in_thread(work)

    def close(self) -> None:
        """Ends the thread."""
        self._stepper.close()


def step_parts(shape: StepShape, block_size: int) -> list[StepPart]:
    """Equal sequences, each over blocks of its own, each to draw a token."""
    num_blocks = num_blocks_for(shape.num_context_tokens, block_size)
    start = shape.num_context_tokens - shape.num_new_tokens
    draw = Draw(GREEDY, shape.num_context_tokens, (TOKEN_ID,), ())
    return [
        StepPart(
            SequenceRows(
                [TOKEN_ID] * shape.num_new_tokens, start, range(number * num_blocks, (number + 1) * num_blocks)
            ),
            draw,
        )
        for number in range(shape.num_sequences)
    ]


@contextlib.asynccontextmanager
async def open_steps(
    client: MemdClient,
    choose: Callable[[torch.dtype], KernelChoice] = choose_kernels,
    turn: Turn = contextlib.nullcontext,
) -> AsyncIterator[StepBench]:
    """Attached as a decode phase would be. NotReadyError, FingerprintMismatchError, DeviceError."""
    attachment = await client.attach(Phase.DECODE, os.getpid(), Fingerprint())
    try:
        mapped = map_model(attachment, SegmentImporter(IMPORTERS), choose)
        bench = StepBench(mapped, attachment.model_config, attachment.kv_layout, turn)
        try:
            yield bench
        finally:
            bench.close()
    finally:
        await attachment.detach()


async def measure_steps(
    bench: StepBench, shapes: Sequence[StepShape], model: ModelFacts, num_rounds: int, advance: Callable[[], None]
) -> tuple[tuple[Floor, ...], tuple[StepTime, ...]]:
    """After one round that is not counted. `advance` is called once a step."""
    rounds = [await _round(bench, shapes, advance) for _ in range(num_rounds + 1)][1:]
    floors = {
        num_threads: _median_floor([each.floors[num_threads] for each in rounds]) for num_threads in rounds[0].floors
    }
    steps = (
        _step_time(shape, [each.times_ms[index] for each in rounds], model, floors)
        for index, shape in enumerate(shapes)
    )
    return tuple(floors.values()), tuple(steps)


@dataclass(frozen=True, slots=True)
class _Round:
    floors: Mapping[int, Floor]  # by the number of threads
    times_ms: Sequence[float]  # by shape


async def _round(bench: StepBench, shapes: Sequence[StepShape], advance: Callable[[], None]) -> _Round:
    floors = {count: await bench.floor(count) for count in sorted({shape.num_threads for shape in shapes})}
    times_ms: list[float] = []
    for shape in shapes:
        times_ms.append(await bench.step_ms(shape))
        advance()
    return _Round(floors, times_ms)


def _median_floor(floors: Sequence[Floor]) -> Floor:
    return Floor(
        floors[0].num_threads,
        median(floor.read_gb_per_s for floor in floors),
        median(floor.gemm_gflop_per_s for floor in floors),
    )


def _step_time(shape: StepShape, times: Sequence[float], model: ModelFacts, floors: Mapping[int, Floor]) -> StepTime:
    floor = floor_ms(shape, model, floors[shape.num_threads])
    return StepTime(shape, median(times), min(times), max(times), floor)

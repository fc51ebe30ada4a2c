"""One phase's load on a share of the device: what the tables over shares and the stalls are measured with."""

import time
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from statistics import median

import torch

from bench.gpu.bench import Bench
from bench.gpu.partitions import SmallestShare, backend_of
from bench.gpu.partner import READY, Load, tell
from bench.gpu.subject import DecodeBatch, Subject, model_named, open_subject, prefill_step
from tandem.clock import MonotonicClock
from tandem.device.cuda.driver import open_driver
from tandem.device.cuda.gpu import read_gpu
from tandem.device.partition import Applied, RestartRequired
from tandem.runner.cuda.graphs import StepStream
from tandem.types import Phase, Split

MODEL = "llama-3-8b"
CONTEXT = 1025  # tokens: of one fewer the first row alone had narrower tables, whose graph is another
NUM_WARM = 2  # steps: the second is the first replay
SMALLEST_PERCENT = 6  # one group of 16
DECODE_PERCENTS = (50, 12, 88, 31, 69, 100, SMALLEST_PERCENT)  # one for each share that a device of 16 groups has


class PhaseLoad:
    """One phase of a process: its share, and steps for so many seconds."""

    def __init__(self, bench: Bench, load: Load, phase: Phase) -> None:
        """DeviceError: no such shares, or no MPS where the other phase computes as well."""
        self._is_dry, self._phase = bench.is_dry, phase
        self.stream = StepStream()
        self._backend = backend_of(load.backend, phase, self.stream)
        self._smallest: SmallestShare | None = None
        self._context, self.num_prompt_tokens = bench.pick(CONTEXT, 32), bench.pick(2048, 32)
        self._room = bench.pick(512, 8)
        config = model_named(bench, MODEL)
        config = replace(config, num_layers=min(config.num_layers, load.num_layers or config.num_layers))
        num_tokens = max(DecodeBatch.num_tokens(bench.pick(64, 4), self._context, self._room), self.num_prompt_tokens)
        self._subject: Subject = open_subject(bench, config, num_tokens, self.stream)

    def use(self, decode_percent: int) -> str:
        """This phase's side of the split; what it has now. DeviceError."""
        if decode_percent == SMALLEST_PERCENT and not self._is_dry:
            self._smallest = self._smallest or SmallestShare(open_driver(), self._phase, self.stream)
            return self._smallest.apply()
        return self.apply(decode_percent).detail

    def apply(self, decode_percent: int) -> Applied | RestartRequired:
        """What the backend makes of this phase's side of the split. DeviceError."""
        return self._backend.apply(self._phase, split_of(decode_percent))

    def decode_step(self, batch: int) -> Callable[[], None]:
        """Of so many sequences, each in its turn where phases take turns."""
        steps = DecodeBatch(self._subject, batch, self._context, self._room)

        def step() -> None:
            with self._backend.turn():
                steps.step()

        return step

    def decode_ms(self, batch: int, seconds: float) -> dict[str, float]:
        """The first step, which is captured when its size is new to the share; and the median of steps."""
        step = self.decode_step(batch)
        first_ms, _ = (seconds_of(step) * 1e3 for _ in range(NUM_WARM))
        return {"first": first_ms, "median": median(_times_s(step, seconds, _never)) * 1e3}

    def warm_up_prefill(self) -> None:
        """On the share that it has now."""
        for _ in range(NUM_WARM):
            self._prefill()

    def prefill_tokens_per_s(self, seconds: float, is_over: Callable[[], bool]) -> float:
        """Chunks of one prompt's length; for `seconds`, or until it `is_over`."""
        return self.num_prompt_tokens / median(_times_s(self._prefill, seconds, is_over))

    def _prefill(self) -> None:
        with self._backend.turn():
            prefill_step(self._subject, 1, self.num_prompt_tokens)


def seconds_of(step: Callable[[], object]) -> float:
    """Of one call."""
    started_s = time.perf_counter()
    step()
    return time.perf_counter() - started_s


def _times_s(step: Callable[[], object], seconds: float, is_over: Callable[[], bool]) -> list[float]:
    """At least one."""
    times_s: list[float] = []
    until_s = time.perf_counter() + seconds
    while not times_s or (time.perf_counter() < until_s and not is_over()):
        times_s.append(seconds_of(step))
    return times_s


def _never() -> bool:
    return False


def partner_load(load: Load, phase: Phase) -> PhaseLoad:
    """In a process beside the section's, which records nothing itself and says when it is ready. DeviceError."""
    if load.backend.is_dry:
        torch.set_num_threads(1)
    nowhere = Path("nothing-is-recorded")
    made = PhaseLoad(Bench(nowhere, MonotonicClock(), inf, nowhere, is_dry=load.backend.is_dry), load, phase)
    tell(READY, made.num_prompt_tokens)
    return made


def can_have_a_peer(bench: Bench) -> bool:
    """Whether another process can compute at the same time; noted, since MPS may be missing and not say so."""
    has_mps = bench.is_dry or read_gpu(open_driver()).has_mps
    bench.record("has_mps", has_mps)
    return has_mps


def split_of(decode_percent: int) -> Split:
    """Prefill has the rest, or both have all."""
    return Split(100 - decode_percent if decode_percent < 100 else 100, decode_percent)

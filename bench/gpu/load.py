"""One phase's load on a share of the device: what the tables over shares are measured with."""

import time
from collections.abc import Callable
from statistics import median

from bench.gpu.bench import Bench
from bench.gpu.subject import DecodeBatch, Subject, model_named, open_subject, prefill_step
from tandem.device.cuda.driver import open_driver
from tandem.device.cuda.gpu import read_gpu
from tandem.device.cuda.green import GreenBackend
from tandem.device.partition import PartitionBackend
from tandem.device.whole import WholeDeviceBackend
from tandem.runner.cuda.graphs import StepStream
from tandem.types import Phase, Split

MODEL = "llama-3-8b"
NUM_WARM = 2  # steps: the second is the first replay
DECODE_PERCENTS = (50, 12, 88, 31, 69, 100)  # one for each of the levels that a device of 16 groups has


class PhaseLoad:
    """One phase of a process: its share, and steps for so many seconds."""

    def __init__(self, bench: Bench, phase: Phase, *, is_alone: bool) -> None:
        """DeviceError: no green contexts, or no MPS where the other phase computes as well."""
        self._phase = phase
        self.stream = StepStream()
        self._backend = _share_backend(bench, phase, self.stream, is_alone=is_alone)
        self._context, self._length = bench.pick(1024, 32), bench.pick(2048, 32)
        self._room = bench.pick(512, 8)
        self._batch = bench.pick(64, 4)
        num_tokens = max(DecodeBatch.num_tokens(self._batch, self._context, self._room), self._length)
        self._subject: Subject = open_subject(bench, model_named(bench, MODEL), num_tokens, self.stream)

    def use(self, decode_percent: int) -> str:
        """This phase's side of the split; what it has now."""
        return self._backend.apply(self._phase, split_of(decode_percent)).detail

    def decode_steps(self, batch: int) -> DecodeBatch:
        """Of so many sequences."""
        return DecodeBatch(self._subject, batch, self._context, self._room)

    def decode_ms(self, batch: int, seconds: float) -> float:
        """Median of steps."""
        steps = self.decode_steps(batch)
        for _ in range(NUM_WARM):
            steps.step()
        return median(_times_s(steps.step, seconds, _never)) * 1e3

    def warm_up_prefill(self) -> None:
        """On the share that it has now."""
        for _ in range(NUM_WARM):
            prefill_step(self._subject, 1, self._length)

    def prefill_tokens_per_s(self, seconds: float, is_over: Callable[[], bool]) -> float:
        """Chunks of one prompt's length; for `seconds`, or until it `is_over`."""
        times_s = _times_s(lambda: prefill_step(self._subject, 1, self._length), seconds, is_over)
        return self._length / median(times_s)


def _times_s(step: Callable[[], object], seconds: float, is_over: Callable[[], bool]) -> list[float]:
    """At least one."""
    times_s: list[float] = []
    until_s = time.perf_counter() + seconds
    while not times_s or (time.perf_counter() < until_s and not is_over()):
        started_s = time.perf_counter()
        step()
        times_s.append(time.perf_counter() - started_s)
    return times_s


def _never() -> bool:
    return False


def _share_backend(bench: Bench, phase: Phase, stream: StepStream, *, is_alone: bool) -> PartitionBackend:
    """Green contexts; in a dry run nothing is partitioned."""
    if bench.is_dry:
        return WholeDeviceBackend()
    return GreenBackend(open_driver(), (phase,), stream.use, is_alone=is_alone)


def can_have_a_peer(bench: Bench) -> bool:
    """Whether another process can compute at the same time; noted, since MPS may be missing and not say so."""
    has_mps = bench.is_dry or read_gpu(open_driver()).has_mps
    bench.record("has_mps", has_mps)
    return has_mps


def split_of(decode_percent: int) -> Split:
    """Prefill has the rest, or both have all."""
    return Split(100 - decode_percent if decode_percent < 100 else 100, decode_percent)

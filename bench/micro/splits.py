"""What a split does to step times: both phases as processes over one memd, each alone and beside the other."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import IO

from rich.table import Table

from bench.deployment.local import LocalServices, run_dir, running
from bench.micro.split_worker import SHAPES
from bench.results import Provenance, provenance
from tandem.config.environment import SERVICE_ENVIRONMENT
from tandem.errors import NotReadyError
from tandem.types import Phase, Split

KV_BYTES = 256 << 20
S_PER_MS = 1e-3


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Of one phase under one split."""

    mean_ms: float
    median_ms: float
    p99_ms: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class SplitTimes:
    """Both phases alone, and beside each other."""

    prefill_percent: int
    decode_percent: int
    alone: Mapping[Phase, StepTimes]
    together: Mapping[Phase, StepTimes]


@dataclass(frozen=True, slots=True)
class SplitsResult:
    """A row a split."""

    provenance: Provenance
    splits: tuple[SplitTimes, ...]


class PhaseProcesses:
    """The two workers."""

    def __init__(self, processes: Mapping[Phase, subprocess.Popen[str]]) -> None:
        self._processes = processes

    def run(self, splits: Mapping[Phase, Split], seconds: float) -> dict[Phase, StepTimes]:
        """Those phases step at once, each as under its split. NotReadyError: one has ended."""
        for phase, split in splits.items():
            asked = json.dumps({"split": (split.prefill_percent, split.decode_percent), "seconds": seconds})
            _pipe(self._processes[phase].stdin).write(asked + "\n")
            _pipe(self._processes[phase].stdin).flush()
        return {phase: step_times(phase, self.answer(phase)) for phase in splits}

    def answer(self, phase: Phase) -> list[float]:
        """The next of its lines. NotReadyError: there is none."""
        line = _pipe(self._processes[phase].stdout).readline()
        if not line:
            raise NotReadyError(f"the process of {phase} ended with {self._processes[phase].wait()}")
        answer: list[float] = json.loads(line)
        return answer


def measure_splits(model: str, splits: Sequence[Split], seconds: float, backend: str) -> SplitsResult:
    """Each split in turn; `backend` as in configuration. NotReadyError when a process does not start."""
    with _workers(model, backend) as workers:
        workers.run(dict.fromkeys(Phase, splits[0]), seconds)  # not counted
        return SplitsResult(provenance(), tuple(_split_times(workers, split, seconds) for split in splits))


def measure_meeting(model: str, seconds: float) -> dict[Phase, StepTimes]:
    """Decode with threads on all cores while prefill computes on half of them. NotReadyError as of `measure_splits`."""
    splits = {Phase.PREFILL: Split(50, 50), Phase.DECODE: Split(100, 100)}
    with _workers(model, "cpu-affinity") as workers:
        workers.run(splits, seconds)  # not counted
        return workers.run(splits, seconds)


def splits_table(result: SplitsResult) -> Table:
    """Milliseconds of decode steps, tokens a second of prefill."""
    table = Table("prefill, decode %", "decode ms alone", "beside", "median", "p99", "prefill tok/s alone", "beside")
    for each in result.splits:
        alone, together = each.alone[Phase.DECODE], each.together[Phase.DECODE]
        decode = (alone.mean_ms, together.mean_ms, together.median_ms, together.p99_ms)
        prefill = (each.alone[Phase.PREFILL].tokens_per_s, each.together[Phase.PREFILL].tokens_per_s)
        numbers = (*(f"{ms:.1f}" for ms in decode), *(f"{tokens:.0f}" for tokens in prefill))
        table.add_row(f"{each.prefill_percent}, {each.decode_percent}", *numbers)
    return table


def step_times(phase: Phase, taken_ms: Sequence[float]) -> StepTimes:
    """Of at least one step."""
    ordered = sorted(taken_ms)
    shape = SHAPES[phase]
    mean_ms = fmean(ordered)
    return StepTimes(
        mean_ms=mean_ms,
        median_ms=median(ordered),
        p99_ms=ordered[int(0.99 * (len(ordered) - 1))],
        tokens_per_s=shape.num_sequences * shape.num_new_tokens / (mean_ms * S_PER_MS),
    )


def _split_times(workers: PhaseProcesses, split: Split, seconds: float) -> SplitTimes:
    alone = {phase: workers.run({phase: split}, seconds / 2)[phase] for phase in Phase}
    together = workers.run(dict.fromkeys(Phase, split), seconds)
    return SplitTimes(split.prefill_percent, split.decode_percent, alone, together)


@contextmanager
def _workers(model: str, backend: str) -> Iterator[PhaseProcesses]:
    memd = {"memd": {"kv-bytes": KV_BYTES}}
    with (
        run_dir() as path,
        running(LocalServices(path, model, memd, ("memd",))) as services,
        _started(services.socket("memd"), path, backend) as workers,
    ):
        yield workers


@contextmanager
def _started(memd: str, path: Path, backend: str) -> Iterator[PhaseProcesses]:
    processes = {phase: _start(phase, memd, path, backend) for phase in Phase}
    try:
        workers = PhaseProcesses(processes)
        for phase in Phase:
            workers.answer(phase)
        yield workers
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def _start(phase: Phase, memd: str, path: Path, backend: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.micro.split_worker", phase, memd, str(path), backend]
    environ = {**os.environ, **SERVICE_ENVIRONMENT}
    return subprocess.Popen(  # noqa: S603 - our own worker
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    )


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise NotReadyError("the process has no pipe")
    return pipe

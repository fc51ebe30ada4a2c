"""What a section is given: where it computes, and where its findings go."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median

import torch

from bench.gpu.floors import Rates
from bench.gpu.record import LEFT_OUT, NO_TIME, Value, write_json
from tandem.clock import Clock


class SkippedError(Exception):
    """A section cannot be had here; its text says why."""


class Bench:
    """A section's surroundings, in its own process. Every finding is written at once."""

    def __init__(self, path: Path, clock: Clock, until_s: float, pack: Path, *, is_dry: bool) -> None:
        """It has time `until_s` of the clock. `pack`: the folder that was brought along, where there is one."""
        self.is_dry = is_dry
        self.device = torch.device("cpu" if is_dry else "cuda")
        self.clock = clock
        self.pack = pack
        self._path, self._until_s = path, until_s
        self._values: dict[str, Value] = {}
        self._left_out: dict[str, str] = {}

    @property
    def left_s(self) -> float:
        """Time that the section has."""
        return self._until_s - self.clock.now()

    def has_time(self, seconds: float) -> bool:
        """For what may well take so long."""
        return self.left_s >= seconds

    def expect(self, names: Iterable[str]) -> None:
        """Findings to come: as long as they are not there they are among what was left out."""
        self._left_out |= dict.fromkeys(names, NO_TIME)
        self._write()

    def leave_out(self, name: str, why: str) -> None:
        """A finding that will not come, for another reason than time."""
        self._left_out[name] = why
        self._write()

    def give_up(self, names: Iterable[str], why: str) -> None:
        """Those of the findings that are not there will not come."""
        self._left_out |= {name: why for name in names if name not in self._values}
        self._write()

    def record(self, name: str, value: Value) -> None:
        """A finding; floats to four digits."""
        self._values[name] = _rounded(value)
        self._left_out.pop(name, None)
        self._write()

    def needs_gpu(self, why: str) -> None:
        """SkippedError in a dry run."""
        if self.is_dry:
            raise SkippedError(f"needs a GPU: {why}")

    def pick(self, real: int, dry: int) -> int:
        """A size."""
        return dry if self.is_dry else real

    def wait(self) -> None:
        """Until the device has done everything."""
        if not self.is_dry:
            torch.cuda.synchronize()

    def median_s(self, work: Callable[[], object], num_rounds: int = 10, num_warm: int = 3) -> float:
        """Of one call: on a GPU the time between two events on the current stream, else the wall's."""
        for _ in range(num_warm):
            work()
        self.wait()
        rounds = num_rounds if not self.is_dry else 2
        return median(_wall_s(work) if self.is_dry else _event_s(work) for _ in range(rounds))

    def rates(self) -> Rates:
        """Measured now: a copy of 4 GiB, a product of bfloat16 matrices of random numbers."""
        return Rates(self._copy_gb_per_s(), self._matmul_tflop_per_s())

    def _write(self) -> None:
        write_json(self._path, self._values | ({LEFT_OUT: self._left_out} if self._left_out else {}))

    def _copy_gb_per_s(self) -> float:
        size = self.pick(4 << 30, 1 << 20)
        source = torch.empty(size, dtype=torch.uint8, device=self.device).random_(0, 255)
        target = torch.empty_like(source)
        return 2 * size / self.median_s(lambda: target.copy_(source)) / 1e9

    def _matmul_tflop_per_s(self) -> float:
        side = self.pick(8192, 64)
        left, right = (torch.randn(side, side, device=self.device).bfloat16() for _ in range(2))
        return 2 * side**3 / self.median_s(lambda: torch.mm(left, right)) / 1e12


def _wall_s(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _event_s(work: Callable[[], object]) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    work()
    ended.record()
    ended.synchronize()
    elapsed_ms: float = began.elapsed_time(ended)
    return elapsed_ms / 1e3


def _rounded(value: Value) -> Value:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value

"""Which cores a phase has under a split: pure arithmetic, the same in both phases' processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tandem.errors import DeviceError
from tandem.types import Phase, Split


@dataclass(frozen=True, slots=True)
class CoreShare:
    """The cores that one phase runs on, ascending, and the threads it computes with."""

    cores: tuple[int, ...]
    num_threads: int


def plan_cores(split: Split, phase: Phase, cores: Sequence[int]) -> CoreShare:
    """The phase's cores among those that both phases may use: prefill's from the low end, decode's from the high.

    Each has at least one. Shares that fit beside each other (together <= 100) have no core in common as long as
    there are two; above 100 they overlap. DeviceError without any core.
    """
    ordered = sorted(set(cores))
    if not ordered:
        raise DeviceError("no core to run on")
    num_prefill, num_decode = _counts(split, len(ordered))
    chosen = ordered[:num_prefill] if phase is Phase.PREFILL else ordered[len(ordered) - num_decode :]
    return CoreShare(tuple(chosen), len(chosen))


def _counts(split: Split, num_cores: int) -> tuple[int, int]:
    num_prefill = _nearest(split.prefill_percent, num_cores)
    num_decode = _nearest(split.decode_percent, num_cores)
    if num_cores == 1 or split.prefill_percent + split.decode_percent > 100:
        return num_prefill, num_decode
    num_prefill = min(num_prefill, num_cores - 1)
    return num_prefill, min(num_decode, num_cores - num_prefill)


def _nearest(percent: int, num_cores: int) -> int:
    return min(max(math.floor(num_cores * percent / 100 + 0.5), 1), num_cores)

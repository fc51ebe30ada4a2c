"""Which cores a phase has under a split, the same in both phases' processes; and how many there are."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from tandem.errors import DeviceError
from tandem.types import Phase, Split

MOST_SPLITS = 8


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


def core_splits(num_cores: int) -> tuple[Split, ...]:
    """The splits that share out all the cores, so few that each is well apart from the next."""
    stride = max(1, num_cores // MOST_SPLITS)
    percents = [round(100 * count / num_cores) for count in range(stride, num_cores, stride)]
    return tuple(Split(percent, 100 - percent) for percent in percents)


def available_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def _counts(split: Split, num_cores: int) -> tuple[int, int]:
    num_prefill = _nearest(split.prefill_percent, num_cores)
    num_decode = _nearest(split.decode_percent, num_cores)
    if num_cores == 1 or split.prefill_percent + split.decode_percent > 100:
        return num_prefill, num_decode
    num_prefill = min(num_prefill, num_cores - 1)
    return num_prefill, min(num_decode, num_cores - num_prefill)


def _nearest(percent: int, num_cores: int) -> int:
    return min(max(math.floor(num_cores * percent / 100 + 0.5), 1), num_cores)

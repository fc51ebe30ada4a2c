"""How long streams stood still around a fault. Pure."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tests.chaos.records import End, Record


@dataclass(frozen=True, slots=True)
class Window:
    """The time in which a fault's cost is looked for: from the fault on."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class PauseSummary:
    """Over all faults of a kind, and all streams that were under way at each."""

    num_faults: int
    num_pauses: int
    p50_s: float
    p99_s: float
    longest_s: float


def pauses(records: Iterable[Record], window: Window) -> tuple[float, ...]:
    """For each request that was under way when the fault came: its longest wait that reaches into the window.

    A wait is the time between two messages with tokens, or from the request's start to the first. Waits count whole,
    from before the fault on.
    """
    found = (_longest_wait_s(record, window) for record in records if record.began_s <= window.start_s)
    return tuple(wait_s for wait_s in found if wait_s > 0)


def summarise(by_fault: Sequence[Sequence[float]]) -> PauseSummary:
    """One entry a fault."""
    waits_s = [wait_s for waits in by_fault for wait_s in waits]
    if not waits_s:
        return PauseSummary(len(by_fault), 0, 0.0, 0.0, 0.0)
    p50_s, p99_s = (float(each) for each in np.percentile(waits_s, [50, 99]))
    return PauseSummary(len(by_fault), len(waits_s), p50_s, p99_s, max(waits_s))


def _longest_wait_s(record: Record, window: Window) -> float:
    moments = [record.began_s, *record.moments_s]
    if record.end in (End.OPEN, End.STUCK):
        moments.append(max(window.end_s, moments[-1]))
    waits = itertools.pairwise(moments)
    return max((b - a for a, b in waits if a < window.end_s and b > window.start_s), default=0.0)

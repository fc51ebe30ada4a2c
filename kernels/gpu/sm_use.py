"""What a probe of the SMs says about two shares of a device; pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """One program of a probe: where it ran, and when by the device's clock."""

    sm_id: int
    started_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class SmUse:
    """The SMs that a probe reached between its first program's start and its last one's end."""

    sm_ids: frozenset[int]
    started_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class SmOverlap:
    """Of two probes. Without common time their SMs say nothing: they took turns."""

    shared_sm_ids: frozenset[int]
    common_ns: int


def sm_use(runs: Sequence[ProgramRun]) -> SmUse:
    """ValueError: no programs."""
    if not runs:
        raise ValueError("a probe has at least one program")
    return SmUse(
        frozenset(run.sm_id for run in runs),
        min(run.started_ns for run in runs),
        max(run.ended_ns for run in runs),
    )


def sm_overlap(first: SmUse, second: SmUse) -> SmOverlap:
    """Symmetric."""
    common_ns = min(first.ended_ns, second.ended_ns) - max(first.started_ns, second.started_ns)
    return SmOverlap(first.sm_ids & second.sm_ids, max(0, common_ns))


def share_faults(first: SmUse, second: SmUse, *, first_quota: int, second_quota: int) -> tuple[str, ...]:
    """Why the two are not disjoint shares of at most these many SMs, used at the same time; empty where they are."""
    overlap = sm_overlap(first, second)
    faults = []
    for name, use, quota in (("first", first, first_quota), ("second", second, second_quota)):
        if len(use.sm_ids) > quota:
            faults.append(f"the {name} share ran on {len(use.sm_ids)} SMs and owns {quota}")
    if overlap.shared_sm_ids:
        faults.append(f"both ran on SMs {sorted(overlap.shared_sm_ids)}")
    if not overlap.common_ns:
        faults.append("the two took turns: they never ran at the same time")
    return tuple(faults)

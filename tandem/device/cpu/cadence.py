"""Who computes when, where there are too few cores to share them out finely: pure, the same in both phases' processes.

Time goes by in periods of the machine's monotonic clock, which both processes read. Through the first part of each, the
phase with the larger share has all cores, and the other rests; then each has half of them. The larger the difference of
the shares, the longer the first part. A phase whose peer has nothing to do always has all.
"""

from dataclasses import dataclass
from enum import Enum

from tandem.types import Phase, Split

PERIOD_S = 0.1
SPLITS = tuple(Split(percent, 100 - percent) for percent in (20, 35, 50, 65, 80))


class Room(Enum):
    """What a phase may compute with now."""

    NONE = "none"
    HALF = "half"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Slot:
    """Until `end_s` of the monotonic clock, at the longest."""

    room: Room
    end_s: float


def slot(phase: Phase, split: Split, peer_is_busy: bool, now_s: float) -> Slot:
    """The phase's at this moment."""
    start_s = now_s - now_s % PERIOD_S
    if not peer_is_busy:
        return Slot(Room.ALL, start_s + PERIOD_S)
    solo_end_s = start_s + PERIOD_S * _solo_part(split)
    if now_s >= solo_end_s:
        return Slot(Room.HALF, start_s + PERIOD_S)
    return Slot(Room.ALL if phase is _larger(split) else Room.NONE, solo_end_s)


def _solo_part(split: Split) -> float:
    total = split.prefill_percent + split.decode_percent
    return abs(split.prefill_percent - split.decode_percent) / total


def _larger(split: Split) -> Phase:
    return Phase.PREFILL if split.prefill_percent > split.decode_percent else Phase.DECODE

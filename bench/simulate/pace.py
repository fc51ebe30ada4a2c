"""How the steps of a simulated process go on beside those of the other phase's. Pure but for the device's noise."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from bench.simulate.step_times import WHOLE_PERCENT, Device, StepContent
from tandem.device.cpu.cadence import Room, slot
from tandem.types import Phase, Split

HALF_PERCENT = WHOLE_PERCENT / 2
MS = 1e3  # of a second


class Activity(Enum):
    """What a process is seen to do."""

    ABSENT = "absent"  # nothing to do
    WAITING = "waiting"  # it has something to do, and does not compute now
    COMPUTING = "computing"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Of a process in the middle of a step. `peer_percent` is the share of the other phase's process."""

    now_s: float
    split: Split
    peer: Activity
    peer_percent: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """The next moments of a step. `part` is what they bring of it: 0 where the process rests."""

    duration_ms: float
    part: float


class Pace(Protocol):
    """Asked at a step's begin, and again whenever a stretch is over."""

    def stretch(self, content: StepContent, around: Surroundings) -> Stretch:
        """The next one of a step."""
        ...


@dataclass(frozen=True, slots=True)
class SharedPace:
    """Each phase has its share of the device, whatever the other does; what overlaps is divided while both compute."""

    phase: Phase
    device: Device

    def stretch(self, content: StepContent, around: Surroundings) -> Stretch:
        """A whole step."""
        beside = around.peer_percent if around.peer is Activity.COMPUTING else 0.0
        return Stretch(self.device.step_ms(content, around.split.percent(self.phase), beside), 1.0)


@dataclass(frozen=True, slots=True)
class CadenceSteps:
    """What in a step can wait: between the layers of one that has more than `short_rows` rows."""

    num_layers: int
    short_rows: int


@dataclass(frozen=True, slots=True)
class CadencePace:
    """`cpu-cadence`: half of the cores for each phase, at times all of them; all while the other has nothing to do."""

    phase: Phase
    device: Device
    steps: CadenceSteps

    def stretch(self, content: StepContent, around: Surroundings) -> Stretch:
        """A layer of a long step, or a whole short one, which goes on into the other's time."""
        has_peer = around.peer is not Activity.ABSENT
        current = slot(self.phase, around.split, has_peer, around.now_s)
        if current.room is Room.NONE:
            return Stretch((current.end_s - around.now_s) * MS, 0.0)
        part = 1.0 / self.steps.num_layers if content.num_rows > self.steps.short_rows else 1.0
        is_beside = around.peer is Activity.COMPUTING
        percent = HALF_PERCENT if current.room is Room.HALF or is_beside else WHOLE_PERCENT
        return Stretch(self.device.step_ms(content, percent, HALF_PERCENT if is_beside else 0.0) * part, part)

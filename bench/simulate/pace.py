"""How the steps of a simulated process go on beside those of the other phase's. Pure but for the device's noise."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from bench.simulate.step_times import WHOLE_PERCENT, Device, StepContent
from tandem.device.cpu.cadence import Room, slot
from tandem.types import Phase, Split

HALF_PERCENT = WHOLE_PERCENT / 2
PARTS_OF_A_SHORT_STEP = 4
MS = 1e3  # of a second


class Activity(Enum):
    """What a process is seen to do."""

    ABSENT = "absent"  # nothing to do
    WAITING = "waiting"  # it has something to do, and does not compute now
    COMPUTING = "computing"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Of a process in the middle of a step: what it and the other phase's process compute with, 0 for nothing."""

    now_s: float
    split: Split
    peer: Activity
    own_percent: float  # in this step, last
    peer_percent: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """The next moments of a step. `part` is what they bring of it, on `percent` of the device; 0 where it rests."""

    duration_ms: float
    part: float
    percent: float


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
        percent = around.split.percent(self.phase)
        return Stretch(self.device.step_ms(content, percent, around.peer_percent), 1.0, percent)


@dataclass(frozen=True, slots=True)
class CadenceSteps:
    """What in a step can wait: between the layers of one that has more than `short_rows` rows."""

    num_layers: int
    short_rows: int


@dataclass(frozen=True, slots=True)
class CadencePace:
    """`cpu-cadence`: half of the cores for each phase, at times all of them; all while the other has nothing to do.

    A phase that comes back finds the other one on all cores until that looks again: at its layer's end, or, in a short
    step, at the step's.
    """

    phase: Phase
    device: Device
    steps: CadenceSteps

    def stretch(self, content: StepContent, around: Surroundings) -> Stretch:
        """A layer of a long step, or a part of a short one, which goes on as it began, into the other's time too."""
        is_long = content.num_rows > self.steps.short_rows
        if around.own_percent and not is_long:
            return self._computed(content, around.own_percent, 1.0 / PARTS_OF_A_SHORT_STEP, around.peer_percent)
        current = slot(self.phase, around.split, around.peer is not Activity.ABSENT, around.now_s)
        if current.room is Room.NONE:
            return Stretch((current.end_s - around.now_s) * MS, 0.0, 0.0)
        percent = HALF_PERCENT if current.room is Room.HALF else WHOLE_PERCENT
        part = 1.0 / (self.steps.num_layers if is_long else PARTS_OF_A_SHORT_STEP)
        return self._computed(content, percent, part, around.peer_percent)

    def _computed(self, content: StepContent, percent: float, part: float, peer_percent: float) -> Stretch:
        """A thread has half of a core that it shares with the other phase, and the others of its step wait for it.

        In a short step they do so oftener than the cores change hands, which `meeting_factor` is for.
        """
        if percent + peer_percent <= WHOLE_PERCENT:
            step_ms = self.device.step_ms(content, percent, peer_percent)
        elif percent > HALF_PERCENT and content.num_rows <= self.steps.short_rows:
            step_ms = self.device.meeting_ms(content)
        else:
            step_ms = self.device.step_ms(content, percent / 2, HALF_PERCENT)
        return Stretch(step_ms * part, part, percent)

"""A simulated process: step after step over its works, as `tandem.phase.loop` and `tandem.phase.joint` do it."""

import math
from collections.abc import Callable, Sequence

from bench.simulate.events import EventQueue
from bench.simulate.pace import Activity, Pace, Surroundings
from bench.simulate.step_times import StepContent
from bench.simulate.works import SimWork
from tandem.device.cpu.cadence_backend import RETURN_S
from tandem.types import Split

MS = 1e-3
WHOLE = Split(100, 100)
NEARLY_ONE = 1.0 - 1e-9  # parts are fractions
Report = Callable[["SimProcess", StepContent, float], None]


class SimProcess:
    """`report` is called after each step with what it was and its milliseconds, rests included."""

    def __init__(
        self,
        works: Sequence[SimWork],
        events: EventQueue,
        pace: Pace,
        between_ms: Callable[["SimProcess"], float],
        report: Report,
    ) -> None:
        """`works` in the order in which they prepare; `between_ms`: from a step's end to the next one's begin."""
        self.split = WHOLE  # as this process has applied it
        self.other: SimProcess | None = None  # on the rest of the device
        self.works = works
        self._content: StepContent | None = None  # of the step under way
        self._begun_s = 0.0
        self._done = 0.0  # of the step
        self._percent = 0.0  # of the device, that it computes with now
        self._owed_ms = 0.0  # to others' work, from the step; below 0: the step is so much shorter
        self._ended_s = -math.inf  # the step before
        self._events = events
        self._pace = pace
        self._between_ms = between_ms
        self._report = report
        self._is_resting = True
        self._is_woken = False  # since the present turn began
        self._new_share: tuple[Split, float] | None = None  # and how long the change takes

    def wake(self) -> None:
        """There may be something to do."""
        self._is_woken = True
        if self._is_resting:
            self._is_resting = False
            self._events.after(0.0, self._turn)

    def assign(self, split: Split, stall_ms: float) -> None:
        """A new share, from the present step's end on."""
        self._new_share = (split, stall_ms)
        self.wake()

    def yield_cores(self, duration_ms: float) -> None:
        """To others' work, from a step that computes now. Below 0: its rest is so much shorter."""
        if self.activity is Activity.COMPUTING:
            self._owed_ms += duration_ms

    @property
    def activity(self) -> Activity:
        """As the other process sees it: between two steps it is still there."""
        if self._content is not None:
            return Activity.COMPUTING if self._percent else Activity.WAITING
        return Activity.WAITING if self._events.now_s < self._ended_s + RETURN_S else Activity.ABSENT

    @property
    def percent(self) -> float:
        """Of the device, that it computes with now."""
        return self._percent

    def _turn(self) -> None:
        self._is_woken = False
        if self._new_share is not None:
            self.split, stall_ms = self._new_share
            self._new_share = None
            self._events.after(stall_ms * MS, self._turn)
            return
        self._content = _joined([content for work in self.works if (content := work.prepare()) is not None])
        if self._content is None:
            self._rest()
            return
        self._begun_s, self._done, self._percent = self._events.now_s, 0.0, 0.0
        self._go_on(self._content)

    def _go_on(self, content: StepContent) -> None:
        if self._owed_ms > 0:
            owed_ms, self._owed_ms = self._owed_ms, 0.0
            self._events.after(owed_ms * MS, lambda: self._go_on(content))
            return
        if self._done >= NEARLY_ONE:
            self._end(content)
            return
        stretch = self._pace.stretch(content, self._surroundings())
        self._percent = stretch.percent
        self._done += stretch.part
        duration_ms = self._less_credit(stretch.duration_ms) if stretch.part else stretch.duration_ms
        self._events.after(duration_ms * MS, lambda: self._go_on(content))

    def _less_credit(self, duration_ms: float) -> float:
        """Nothing is owed but, perhaps, to the step."""
        rest_ms = duration_ms + self._owed_ms
        self._owed_ms = min(0.0, rest_ms)
        return max(0.0, rest_ms)

    def _surroundings(self) -> Surroundings:
        if self.other is None:
            return Surroundings(self._events.now_s, self.split, Activity.ABSENT, self._percent, 0.0)
        peer = self.other
        return Surroundings(self._events.now_s, self.split, peer.activity, self._percent, peer.percent)

    def _rest(self) -> None:
        """Until woken; a turn that woke its own process is followed by another."""
        self._is_resting = not self._is_woken
        if self._is_woken:
            self._events.after(0.0, self._turn)

    def _end(self, content: StepContent) -> None:
        self._content, self._ended_s, self._percent = None, self._events.now_s, 0.0
        for work in self.works:
            work.finish(self._ended_s)
        self._report(self, content, (self._ended_s - self._begun_s) / MS)
        between_ms = self._between_ms(self)
        self._owed_ms += min(0.0, between_ms)
        self._events.after(max(0.0, between_ms) * MS, self._turn)


def _joined(contents: Sequence[StepContent]) -> StepContent | None:
    if len(contents) < 2:
        return contents[0] if contents else None
    rows = sum(content.num_prompt_rows for content in contents)
    keys = sum(content.num_keys_before * content.num_prompt_rows for content in contents)
    return StepContent(
        num_prompt_rows=rows,
        num_keys_before=keys / rows if rows else 0.0,
        num_decode_rows=sum(content.num_decode_rows for content in contents),
        num_decode_keys=sum(content.num_decode_keys for content in contents),
    )

"""A simulated process: step after step over its works, as `tandem.phase.loop` and `tandem.phase.joint` do it."""

from collections.abc import Callable, Sequence

from bench.simulate.events import EventQueue
from bench.simulate.step_times import Device, StepContent
from bench.simulate.works import SimWork

MS = 1e-3
Report = Callable[["SimProcess", StepContent, float], None]


class SimProcess:
    """`percent` is its share. `report` is called after each step with what it was and its milliseconds."""

    def __init__(
        self,
        works: Sequence[SimWork],
        events: EventQueue,
        device: Device,
        between_steps_ms: float,
        report: Report,
    ) -> None:
        """`works` in the order in which they prepare."""
        self.percent = 100.0
        self.other: SimProcess | None = None  # on the rest of the device
        self.works = works
        self.content: StepContent | None = None  # of the step under way
        self._events = events
        self._device = device
        self._between_s = between_steps_ms * MS
        self._report = report
        self._is_resting = True
        self._is_woken = False  # since the present turn began
        self._new_share: tuple[float, float] | None = None  # percent, and how long the change takes

    def wake(self) -> None:
        """There may be something to do."""
        self._is_woken = True
        if self._is_resting:
            self._is_resting = False
            self._events.after(0.0, self._turn)

    def assign(self, percent: float, stall_ms: float) -> None:
        """A new share, from the present step's end on."""
        self._new_share = (percent, stall_ms)
        self.wake()

    def _turn(self) -> None:
        self._is_woken = False
        if self._new_share is not None:
            self.percent, stall_ms = self._new_share
            self._new_share = None
            self._events.after(stall_ms * MS, self._turn)
            return
        self.content = _joined([content for work in self.works if (content := work.prepare()) is not None])
        if self.content is None:
            self._rest()
            return
        other_percent = self.other.percent if self.other is not None and self.other.content is not None else 0.0
        duration_ms = self._device.step_ms(self.content, self.percent, other_percent)
        self._events.after(duration_ms * MS, lambda: self._end(duration_ms))

    def _rest(self) -> None:
        """Until woken; a turn that woke its own process is followed by another."""
        self._is_resting = not self._is_woken
        if self._is_woken:
            self._events.after(0.0, self._turn)

    def _end(self, duration_ms: float) -> None:
        content, self.content = self.content, None
        if content is None:
            raise RuntimeError("a step ends that did not begin")
        for work in self.works:
            work.finish(self._events.now_s)
        self._report(self, content, duration_ms)
        self._events.after(self._between_s, self._turn)


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

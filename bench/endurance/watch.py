"""What processes have, looked at again and again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.endurance.results import ProcessSeries, ProcessWindow
from bench.micro.processes import ProcessMemory, memory, num_descriptors, num_threads
from tandem.errors import NotReadyError


@dataclass(frozen=True, slots=True)
class _Look:
    """At one process, once."""

    memory: ProcessMemory
    num_descriptors: int
    num_threads: int


class Watch:
    """Keeps a line a window for each process: medians of memory, the most of what is counted."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._pids: dict[str, int] = {}
        self._windows: dict[str, list[ProcessWindow]] = {}
        self._number = 0
        self._looks: dict[str, list[_Look]] = {}  # of the window that is not over

    def add(self, pids: Mapping[str, int]) -> None:
        """Looked at from now on."""
        self._pids.update(pids)
        self._windows.update({name: [] for name in pids})

    def look(self, at_s: float) -> None:
        """Now. NotReadyError: a process has ended."""
        if (number := int(at_s // self._window_s)) != self._number:
            self._close()
            self._number = number
        for name, pid in self._pids.items():
            try:
                look = _Look(memory(pid), num_descriptors(pid), num_threads(pid))
            except ProcessLookupError:
                raise NotReadyError(f"{name} has ended, {at_s:.0f} s into the run") from None
            self._looks.setdefault(name, []).append(look)

    def series(self) -> tuple[ProcessSeries, ...]:
        """Of whole windows."""
        return tuple(ProcessSeries(name, tuple(windows)) for name, windows in self._windows.items())

    def _close(self) -> None:
        middle_s = (self._number + 0.5) * self._window_s
        for name, looks in self._looks.items():
            self._windows[name].append(_window(middle_s, looks))
        self._looks = {}


def _window(at_s: float, looks: Sequence[_Look]) -> ProcessWindow:
    return ProcessWindow(
        at_s=at_s,
        pss_bytes=round(median(look.memory.pss_bytes for look in looks)),
        uss_bytes=round(median(look.memory.uss_bytes for look in looks)),
        anonymous_bytes=round(median(look.memory.pss_anonymous_bytes for look in looks)),
        segment_bytes=round(median(look.memory.pss_shared_bytes for look in looks)),
        num_descriptors=max(look.num_descriptors for look in looks),
        num_threads=max(look.num_threads for look in looks),
    )

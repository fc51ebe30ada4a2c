"""When a service that does not answer counts as hung. Pure: who looks, and when, is the caller's.

Only silence in which the service could have answered counts: not that of a process under a debugger, nor of one that
waits for a processor, and of a round no more than it was to last, so that a machine that slept, or froze the one who
looks as well, alarms nobody. What has never served may still be starting, and is left alone.
"""

from dataclasses import dataclass
from enum import Enum

STARVED = 0.5  # of the time between two looks, ready to run without a processor


class Sight(Enum):
    """What was seen of a service."""

    ABSENT = "absent"  # nobody listens
    SERVING = "serving"
    ANSWERING = "answering"  # something else
    SILENT = "silent"  # somebody listens, no answer came


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """Of the process that listens, and its main thread."""

    pid: int
    is_traced: bool
    waited_s: float  # so far, ready to run without a processor; 0 where the kernel does not say


@dataclass(slots=True)
class Vigil:
    """Over one service, from its first look on."""

    pid: int = 0
    has_served: bool = False
    silent_s: float = 0.0
    looked_s: float = 0.0
    waited_s: float = 0.0

    def look(self, sight: Sight, facts: ProcessFacts | None, now_s: float, round_s: float) -> float:
        """For how long it has been silent without need; 0 when it answers, or may not be able to."""
        since_s, self.looked_s = now_s - self.looked_s, now_s
        if facts is None or sight is Sight.ABSENT or facts.pid != self.pid:
            self.pid, self.has_served, self.silent_s = 0 if facts is None else facts.pid, False, 0.0
        self.has_served = self.has_served or sight is Sight.SERVING
        if facts is None or sight is not Sight.SILENT:
            self.silent_s = 0.0
        elif self.has_served and not facts.is_traced and facts.waited_s - self.waited_s < STARVED * since_s:
            self.silent_s += min(since_s, round_s)
        self.waited_s = 0.0 if facts is None else facts.waited_s
        return self.silent_s

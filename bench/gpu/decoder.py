"""The decode phase in a process of its own, whose share changes while it steps: ``python -m bench.gpu.decoder LOAD``.

``warm PERCENT`` makes the first steps on a share, and is answered with the first one's milliseconds. From ``go
PERCENT`` on it steps without a pause. ``share PERCENT`` is taken up at the end of the step under way and put to the
partition backend: applied, the answer is ``switched`` and the step times around it; where only another process can have
the share, it is ``needs`` and that one's environment, and this process goes on. ``retire`` ends the steps.
"""

import sys
from collections.abc import Callable

from bench.gpu.load import PhaseLoad, partner_load, seconds_of
from bench.gpu.partner import is_told, load_of, tell
from tandem.clock import Clock, MonotonicClock
from tandem.device.partition import RestartRequired
from tandem.types import Phase

BATCH, DRY_BATCH = 16, 2
GO, RETIRE, WARM, SHARE = "go", "retire", "warm", "share"
WARMED, SWITCHED, NEEDS, RETIRED = "warmed", "switched", "needs", "retired"


class Decoding:
    """Steps one after another, and when they began and ended on the machine's clock."""

    def __init__(self, load: PhaseLoad, step: Callable[[], None], clock: Clock) -> None:
        self._load, self._step, self._clock = load, step, clock
        self._ended_s = clock.now()
        self._steps_s: list[float] = []  # that followed no switch, since they were last told

    def warm_up(self, percent: int) -> None:
        """The share's first step is captured, its second replayed."""
        self._load.use(percent)
        first_s, _ = seconds_of(self._step), seconds_of(self._step)
        tell(WARMED, first_s * 1e3)

    def serve(self, percent: int) -> None:
        """From a `go` to a `retire`, or to the end of what is told."""
        self._switch(percent)
        while True:
            self._next()  # a usual step between any two switches
            while not is_told():
                self._next()
            words = sys.stdin.readline().split()
            if not words or words[0] == RETIRE:
                tell(RETIRED, {"last_end_s": self._ended_s, "steps_s": self._told_steps_s()})
                return
            self._switch(int(words[1]))

    def _switch(self, percent: int) -> None:
        last_end_s = self._ended_s
        outcome = self._load.apply(percent)
        if isinstance(outcome, RestartRequired):
            tell(NEEDS, dict(outcome.environment))
            return
        begin_s = self._clock.now()
        self._step()
        self._ended_s = self._clock.now()
        times = {"last_end_s": last_end_s, "begin_s": begin_s, "end_s": self._ended_s}
        tell(SWITCHED, {**times, "steps_s": self._told_steps_s()})

    def _next(self) -> None:
        began_s = self._ended_s
        self._step()
        self._ended_s = self._clock.now()
        self._steps_s.append(self._ended_s - began_s)

    def _told_steps_s(self) -> list[float]:
        told, self._steps_s = self._steps_s, []
        return told


def main(text: str) -> None:
    """See the module."""
    options = load_of(text)
    load = partner_load(options, Phase.DECODE)
    step = load.decode_step(DRY_BATCH if options.backend.is_dry else BATCH)
    decoding = Decoding(load, step, MonotonicClock())
    for words in map(str.split, iter(sys.stdin.readline, "")):
        if words[0] == WARM:
            decoding.warm_up(int(words[1]))
        else:
            decoding.serve(int(words[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])

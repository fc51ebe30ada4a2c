"""Which part of each step of a phase had the other phase at work beside it. Pure but for what it keeps.

A step is reported when it ends, so what the other phase did meanwhile is known only with that one's next report.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tandem.partition.samples import StepSample

LONGEST_STEP_S = 1.0  # who has reported nothing for longer than that is taken to have been idle
MAX_KEPT = 256


@dataclass(slots=True)
class _Open:
    """A step of which it is not known yet."""

    sample: StepSample
    overlap_s: float

    def settled(self) -> StepSample:
        return replace(self.sample, beside=min(1.0, self.overlap_s * 1e3 / self.sample.duration_ms))


class Besides:
    """One phase's newest steps, until it is known what was beside them."""

    def __init__(self) -> None:
        self._open: deque[_Open] = deque(maxlen=MAX_KEPT)
        self._peers: deque[StepSample] = deque(maxlen=MAX_KEPT)

    def add(self, sample: StepSample) -> None:
        """A step of this phase has ended."""
        known_s = sum(_overlap_s(sample, step) for step in _since(self._peers, sample.begun_s))
        self._open.append(_Open(sample, known_s))

    def peer_stepped(self, step: StepSample) -> None:
        """A step of the other phase has ended."""
        self._peers.append(step)
        for each in reversed(self._open):
            if each.sample.at_s <= step.begun_s:
                break
            each.overlap_s += _overlap_s(each.sample, step)

    def settle(self, now_s: float) -> Iterator[StepSample]:
        """Takes out those of which all is known."""
        until_s = now_s - LONGEST_STEP_S
        if self._peers:
            until_s = max(until_s, self._peers[-1].at_s)
        while self._open and self._open[0].sample.at_s <= until_s:
            yield self._open.popleft().settled()


def _since(steps: Sequence[StepSample], since_s: float) -> Iterator[StepSample]:
    """The newest first."""
    for step in reversed(steps):
        if step.at_s <= since_s:
            return
        yield step


def _overlap_s(one: StepSample, other: StepSample) -> float:
    return max(0.0, min(one.at_s, other.at_s) - max(one.begun_s, other.begun_s))

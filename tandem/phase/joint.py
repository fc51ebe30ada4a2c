"""The work of one process's steps: a phase's alone, or that of both in one forward pass.

Decode prepares first, so that running sequences never miss a step for a prompt: prefill gets what they leave of the
step's token budget (chunked prefill mixed into decode batches; Sarathi-Serve, arXiv 2403.02310).
"""

import asyncio
from collections.abc import Sequence

from tandem.phase.loop import Load, StepWork
from tandem.phase.stepper import StepPart, StepResult
from tandem.types import Phase

_ORDER = (Phase.DECODE, Phase.PREFILL)


class JointWork:
    """A `StepWork` made of the works that are enlisted. `wake` is set by whoever changes what they would answer."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.num_rows = 0  # of the step, as far as it is prepared
        self._enlisted: dict[Phase, StepWork] = {}
        self._step: list[tuple[StepWork, int]] = []  # who takes part in it, with how many parts

    def enlist(self, phase: Phase, work: StepWork) -> None:
        """It takes part from the next step on."""
        self._enlisted[phase] = work
        self.wake.set()

    def prepare(self) -> Sequence[StepPart]:
        """The parts of all works."""
        self.num_rows = 0
        self._step = []
        joined: list[StepPart] = []
        for work in self._works():
            parts = work.prepare()
            self.num_rows += sum(len(part.rows.token_ids) for part in parts)
            self._step.append((work, len(parts)))
            joined.extend(parts)
        return joined

    def finish(self, results: Sequence[StepResult]) -> None:
        """Each work gets its own parts'."""
        start = 0
        for work, num_parts in self._step:
            work.finish(results[start : start + num_parts])
            start += num_parts

    def fail(self, message: str) -> None:
        """All parts of the step are lost."""
        for work, _ in self._step:
            work.fail(message)

    def deliver(self) -> None:
        """One message a stream."""
        for work in self._works():
            work.deliver()

    def load(self) -> Load:
        """The sum."""
        loads = [work.load() for work in self._works()]
        return Load(
            num_waiting=sum(load.num_waiting for load in loads),
            num_running=sum(load.num_running for load in loads),
            num_spare_blocks=sum(load.num_spare_blocks for load in loads),
            num_backlog_tokens=sum(load.num_backlog_tokens for load in loads),
        )

    def _works(self) -> list[StepWork]:
        return [self._enlisted[phase] for phase in _ORDER if phase in self._enlisted]

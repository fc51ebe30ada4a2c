"""The one thread in which torch runs."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TypeVar

from tandem.errors import DeviceError
from tandem.model.batch import SequenceRows
from tandem.reuse.plan import Scores
from tandem.runner.sampler import Draw, SampledToken
from tandem.runner.steps import EntryCopy, SegmentRunner, StepRunner, TokenCopy

ValueT = TypeVar("ValueT")

StepResult = SampledToken | Scores | None
"""A part's: a token where there is a draw, scores of a probe or a look, nothing else."""


class Beside(Enum):
    """What a sequence brings to a step beside its part of it. The other parts are one pass with and without it."""

    REFRESH = auto()  # a pass before the others': its rows write KV that the sequence has already
    LOOK = auto()  # after them, see `SegmentRunner.look`


@dataclass(frozen=True, slots=True)
class StepPart:
    """One sequence's part of a step; without a `draw` its logits are not looked at.

    First the blocks in `wipes` are zeroed: KV of another sharing domain may be in them. `copy` and `entries` are made
    before the rows, which look at them. With `num_asking` the rows are those of a probe (see `SegmentRunner`), and the
    model does not get them.
    """

    rows: SequenceRows
    draw: Draw | None
    wipes: Sequence[int] = ()
    copy: TokenCopy | None = None
    entries: Sequence[EntryCopy] = ()
    num_asking: int | None = None
    beside: Beside | None = None

    @property
    def is_of_model(self) -> bool:
        """Whether it is computed with the others."""
        return self.num_asking is None and self.beside is None


def _no_segments() -> SegmentRunner:
    raise DeviceError("these steps cannot reuse segments")


def _no_wiping(block_ids: Sequence[int]) -> None:
    raise DeviceError("these steps cannot wipe blocks")


class Stepper:
    """Runs steps and whatever else must happen in the step's own thread (thread counts are a thread's own)."""

    def __init__(
        self,
        runner: StepRunner,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        check_device: Callable[[], None] = lambda: None,
        work: Callable[[], AbstractContextManager[None]] = nullcontext,
        open_segments: Callable[[], SegmentRunner] = _no_segments,
        *,
        wipe: Callable[[Sequence[int]], None] = _no_wiping,
    ) -> None:
        """`turn` is entered for each step: where phases share time it waits for this one's; `work` when it has come.

        `check_device` is called when a step has failed. DeviceFaultError: no other step will succeed. `open_segments`
        is called once, when a part has use for it. `wipe` zeroes blocks.
        """
        self._runner = runner
        self._turn = turn
        self._check_device = check_device
        self._work = work
        self._open_segments = open_segments
        self._wipe = wipe
        self._opened: SegmentRunner | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="step")

    async def step(self, parts: Sequence[StepPart]) -> Sequence[StepResult]:
        """One forward pass, and the parts' probes; one result a part. Raises what the runner or the sampler raises.

        DeviceFaultError instead, when the device is the reason.
        """
        return await self.run_in_thread(partial(self._step, parts))

    async def run_in_thread(self, work: Callable[[], ValueT]) -> ValueT:
        """Between two steps."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Waits for the step that is under way."""
        self._pool.shutdown(wait=True)

    def _step(self, parts: Sequence[StepPart]) -> Sequence[StepResult]:
        try:
            with self._turn(), self._work():
                self._ready_blocks(parts)
                return self._compute(parts)
        except Exception:
            self._check_device()
            raise

    def _ready_blocks(self, parts: Sequence[StepPart]) -> None:
        if wipes := [block_id for part in parts for block_id in part.wipes]:
            self._wipe(wipes)
        if copies := [part.copy for part in parts if part.copy is not None]:
            self._runner.copy_tokens(copies)
        if entries := [entry for part in parts for entry in part.entries]:
            self._segments().place(entries)

    def _compute(self, parts: Sequence[StepPart]) -> Sequence[StepResult]:
        of_model = [part for part in parts if part.is_of_model]
        if len(of_model) == len(parts):
            return self._execute(parts)
        if refreshes := [part for part in parts if part.beside is Beside.REFRESH]:
            self._execute(refreshes)
        tokens = iter(self._execute(of_model) if of_model else ())
        return [next(tokens) if part.is_of_model else self._score(part) for part in parts]

    def _score(self, part: StepPart) -> Scores | None:
        if part.beside is Beside.LOOK:
            return self._segments().look(part.rows)
        return None if part.num_asking is None else self._segments().probe(part.rows, part.num_asking)

    def _execute(self, parts: Sequence[StepPart]) -> Sequence[SampledToken | None]:
        return self._runner.execute([part.rows for part in parts], [part.draw for part in parts])

    def _segments(self) -> SegmentRunner:
        if self._opened is None:
            self._opened = self._open_segments()
        return self._opened

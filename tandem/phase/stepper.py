"""The one thread in which torch runs."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tandem.model.batch import SequenceRows
from tandem.runner.sampler import Draw, SampledToken
from tandem.runner.steps import StepRunner, TokenCopy

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class StepPart:
    """One sequence's part of a step; without a `draw` its logits are not looked at."""

    rows: SequenceRows
    draw: Draw | None
    copy: TokenCopy | None = None  # of what the rows look at, made before them


class Stepper:
    """Runs steps and whatever else must happen in the step's own thread (thread counts are a thread's own)."""

    def __init__(
        self,
        runner: StepRunner,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        check_device: Callable[[], None] = lambda: None,
        work: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`turn` is entered for each step: where phases share time it waits for this one's; `work` when it has come.

        `check_device` is called when a step has failed. DeviceFaultError: no other step will succeed.
        """
        self._runner = runner
        self._turn = turn
        self._check_device = check_device
        self._work = work
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="step")

    async def step(self, parts: Sequence[StepPart]) -> list[SampledToken | None]:
        """One forward pass; a token for each part with a draw. Raises what the runner or the sampler raises.

        DeviceFaultError instead, when the device is the reason.
        """
        return await self.run_in_thread(partial(self._step, parts))

    async def run_in_thread(self, work: Callable[[], ValueT]) -> ValueT:
        """Between two steps."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Waits for the step that is under way."""
        self._pool.shutdown(wait=True)

    def _step(self, parts: Sequence[StepPart]) -> list[SampledToken | None]:
        try:
            with self._turn(), self._work():
                if copies := [part.copy for part in parts if part.copy is not None]:
                    self._runner.copy_tokens(copies)
                return self._runner.execute([part.rows for part in parts], [part.draw for part in parts])
        except Exception:
            self._check_device()
            raise

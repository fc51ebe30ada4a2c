"""Step after step: what prefill and decode do alike around their own decisions."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from tandem.clock import Clock
from tandem.errors import DeviceError, DeviceFaultError
from tandem.phase.share import ControllerPort, ShareKeeper
from tandem.phase.stepper import StepPart, Stepper, StepResult
from tandem.telemetry.metrics import PhaseMetrics
from tandem.types import StepStatistics

_log = structlog.get_logger()

MAX_FAILURES_IN_A_ROW = 3
IDLE_POLL_S = 0.2  # how late an idle phase sees an assignment of the controller


@dataclass(frozen=True, slots=True)
class Load:
    """What stands in a phase, for the gauges."""

    num_waiting: int
    num_running: int
    num_spare_blocks: int
    num_backlog_tokens: int = 0  # of prompts, to be computed


class StepWork(Protocol):
    """One phase's own part. Each method runs on the loop and awaits nothing."""

    def prepare(self) -> Sequence[StepPart]:
        """Between two steps: who takes part in the next; none when there is nothing to do now."""
        ...

    def finish(self, results: Sequence[StepResult]) -> None:
        """The step that was prepared is done; one entry a part."""
        ...

    def fail(self, message: str) -> None:
        """The step that was prepared raised: its sequences are to be dropped."""
        ...

    def deliver(self) -> None:
        """Says what is to be said on the streams."""
        ...

    def load(self) -> Load:
        """As it is now."""
        ...


class Reporter:
    """Tells the controller and the metrics of each step."""

    def __init__(self, controller: ControllerPort, metrics: PhaseMetrics, unix_ns: Callable[[], int]) -> None:
        self._controller = controller
        self._metrics = metrics
        self._unix_ns = unix_ns

    def step(self, parts: Sequence[StepPart], duration_s: float, load: Load) -> None:
        """A step that has ended, and what it leaves behind."""
        num_tokens = sum(len(part.rows.token_ids) for part in parts)
        self._metrics.step_duration_seconds.observe(duration_s)
        self._metrics.iteration_tokens.inc(num_tokens)
        self._controller.report_step(
            StepStatistics(
                duration_ms=duration_s * 1000,
                num_sequences=sum(part.beside is None for part in parts),
                num_tokens=num_tokens,
                num_context_tokens=sum(part.rows.num_context_tokens for part in parts),
                num_waiting=load.num_waiting,
                unix_ns=self._unix_ns(),
                num_backlog_tokens=load.num_backlog_tokens,
            )
        )

    def load(self, load: Load) -> None:
        """Sets the gauges."""
        self._metrics.num_sequences_waiting.set(load.num_waiting)
        self._metrics.num_sequences_running.set(load.num_running)
        self._metrics.num_spare_blocks.set(load.num_spare_blocks)


class StepLoop:
    """Prepares, steps and finishes for ever. A failing step costs its own sequences only, three in a row the phase.

    A step that failed because the device cannot be used any more ends the phase at once.
    """

    def __init__(
        self,
        work: StepWork,
        *,
        wake: asyncio.Event,
        stepper: Stepper,
        share: ShareKeeper,
        reporter: Reporter,
        clock: Clock,
        idle_check: Callable[[], None] | None = None,
    ) -> None:
        """`wake` is set by whoever changes what `work.prepare` would answer. `idle_check` is called on the step's
        thread while there is nothing to do; DeviceFaultError ends the loop.
        """
        self._work = work
        self._wake = wake
        self._stepper = stepper
        self._share = share
        self._reporter = reporter
        self._clock = clock
        self._idle_check = idle_check
        self._num_failures = 0

    async def run(self) -> None:
        """Until cancelled, and then until the thread is at rest. DeviceError after three failing steps, or a fault."""
        try:
            while True:
                await self._turn()
        finally:
            self._stepper.close()

    async def _turn(self) -> None:
        await self._share.apply_pending()
        self._wake.clear()
        parts = self._work.prepare()
        self._work.deliver()
        if parts:
            await self._step(parts)
        else:
            self._reporter.load(self._work.load())
            await self._idle()

    async def _step(self, parts: Sequence[StepPart]) -> None:
        started_s = self._clock.now()
        try:
            results = await self._stepper.step(parts)
        except Exception as error:
            self._fail(error)
            return
        self._num_failures = 0
        self._work.finish(results)
        load = self._work.load()
        self._reporter.step(parts, self._clock.now() - started_s, load)
        self._reporter.load(load)

    def _fail(self, error: Exception) -> None:
        self._num_failures += 1
        _log.error("step.failed", num_failures=self._num_failures, exc_info=error)
        self._work.fail(f"a step failed: {type(error).__name__}: {error}")
        if isinstance(error, DeviceFaultError):
            raise error
        if self._num_failures >= MAX_FAILURES_IN_A_ROW:
            raise DeviceError(f"{self._num_failures} steps in a row failed, the last with {error}") from error

    async def _idle(self) -> None:
        try:
            async with asyncio.timeout(IDLE_POLL_S):
                await self._wake.wait()
        except TimeoutError:
            if self._idle_check is not None:
                await self._stepper.run_in_thread(self._idle_check)

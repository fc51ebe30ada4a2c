"""This phase's share of the device, as the controller assigns it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import structlog

from tandem.clock import Clock
from tandem.device.partition import Applied, PartitionBackend, RestartRequired
from tandem.errors import DeviceError, DeviceFaultError
from tandem.phase.stepper import Stepper
from tandem.telemetry.metrics import PhaseMetrics
from tandem.types import Phase, Split, StepStatistics

_log = structlog.get_logger()


class ControllerPort(Protocol):
    """What `tandem.rpc.controller_client.ControllerLink` is to a step loop; nothing here waits."""

    def pending(self) -> tuple[int, Split] | None:
        """The latest assignment that was not taken yet: decision id and split."""
        ...

    def report_applied(self, decision_id: int, outcome: Applied | RestartRequired, apply_ms: float) -> None:
        """What came of an assignment."""
        ...

    def report_step(self, step: StepStatistics) -> None:
        """One step."""
        ...


class WholeDevice:
    """Of a process that serves both phases: its steps are reported, and no share is ever assigned to it."""

    def __init__(self, controller: ControllerPort) -> None:
        self._controller = controller

    def pending(self) -> tuple[int, Split] | None:
        """Splits are for others."""
        self._controller.pending()
        return None

    def report_applied(self, decision_id: int, outcome: Applied | RestartRequired, apply_ms: float) -> None:
        """Nothing is applied."""

    def report_step(self, step: StepStatistics) -> None:
        """One step."""
        self._controller.report_step(step)


def _nobody_follows(environment: Mapping[str, str]) -> None:
    """Of a process whose backend can have any share."""


class ShareKeeper:
    """Applies the latest assignment, in the step's thread: a thread count holds for the thread that set it.

    A share that only another process can have is left to that one.
    """

    def __init__(
        self,
        phase: Phase,
        controller: ControllerPort,
        backend: PartitionBackend,
        stepper: Stepper,
        *,
        metrics: PhaseMetrics,
        clock: Clock,
        want_successor: Callable[[Mapping[str, str]], None] = _nobody_follows,
    ) -> None:
        """`want_successor` is told what another process must be started with."""
        self._phase = phase
        self._controller = controller
        self._backend = backend
        self._stepper = stepper
        self._metrics = metrics
        self._clock = clock
        self._want_successor = want_successor

    async def apply_pending(self) -> None:
        """Between two steps. A share that cannot be had is logged, and the one in force stays. DeviceFaultError."""
        assignment = self._controller.pending()
        if assignment is None:
            return
        decision_id, split = assignment
        started_s = self._clock.now()
        try:
            outcome = await self._stepper.run_in_thread(partial(self._backend.apply, self._phase, split))
        except DeviceFaultError:
            raise
        except DeviceError as error:
            _log.error("share.failed", decision_id=decision_id, error=str(error))
            return
        apply_s = self._clock.now() - started_s
        self._metrics.partition_apply_seconds.observe(apply_s)
        self._controller.report_applied(decision_id, outcome, apply_s * 1000)
        if isinstance(outcome, RestartRequired):
            _log.info("share.needs_new_process", decision_id=decision_id, detail=outcome.detail)
            self._want_successor(outcome.environment)
        else:
            _log.info("share.applied", decision_id=decision_id, detail=outcome.detail, apply_ms=apply_s * 1000)

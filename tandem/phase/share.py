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


class Successors(Protocol):
    """What `tandem.phase.succession.Succession` is to a share that only another process can have."""

    def want(self, environment: Mapping[str, str], on_failure: Callable[[], None]) -> None:
        """A process started with `environment`; `on_failure` is called each time that one did not come to serve."""
        ...

    def need_none(self) -> None:
        """This process has the share that it should have."""
        ...


class NobodyFollows:
    """Of a process whose backend can have any share."""

    def want(self, environment: Mapping[str, str], on_failure: Callable[[], None]) -> None:
        """Never called."""

    def need_none(self) -> None:
        """It never needs one."""


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
        successors: Successors = NobodyFollows(),  # noqa: B008 - it has no state
    ) -> None:
        """`successors` are told what another process must be started with."""
        self._phase = phase
        self._controller = controller
        self._backend = backend
        self._stepper = stepper
        self._metrics = metrics
        self._clock = clock
        self._successors = successors

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
            self._successors.want(outcome.environment, partial(self._report_failure, decision_id, outcome))
        else:
            self._successors.need_none()
            _log.info("share.applied", decision_id=decision_id, detail=outcome.detail, apply_ms=apply_s * 1000)

    def _report_failure(self, decision_id: int, wanted: RestartRequired) -> None:
        detail = f"no new process came to serve, tried again later: {wanted.detail}"
        failed = RestartRequired(detail, wanted.environment)
        self._controller.report_applied(decision_id, failed, 0.0)

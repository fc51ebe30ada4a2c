"""Reports that cannot be true: counted, told of now and then, and passed over by everything else."""

import math
from collections.abc import Callable

import structlog
from prometheus_client import Counter

from tandem.clock import Clock
from tandem.partition.plausibility import observation_fault, step_fault
from tandem.types import RequestObservation, StepStatistics

_log = structlog.get_logger()

LOG_INTERVAL_S = 60.0
GATEWAY = "gateway"


class Distrust:
    """Looks at every report before it counts."""

    def __init__(self, clock: Clock, unix_ns: Callable[[], int], refused: Counter) -> None:
        """`unix_ns` is what senders' times are held against; `refused` is labelled by the source."""
        self._clock = clock
        self._unix_ns = unix_ns
        self._refused = refused
        self._logged_s = -math.inf
        self._num_unlogged = 0

    def believes_step(self, source: str, step: StepStatistics) -> bool:
        """Whether it can be true."""
        return self._believes(source, step_fault(step, self._unix_ns()))

    def believes_observation(self, observation: RequestObservation) -> bool:
        """Whether it can be true."""
        return self._believes(GATEWAY, observation_fault(observation, self._unix_ns()))

    def _believes(self, source: str, fault: str | None) -> bool:
        if fault is None:
            return True
        self._refused.labels(source).inc()
        self._num_unlogged += 1
        now_s = self._clock.now()
        if now_s - self._logged_s >= LOG_INTERVAL_S:
            _log.warning("report.refused", source=source, fault=fault, num_refused=self._num_unlogged)
            self._logged_s, self._num_unlogged = now_s, 0
        return False

"""When the planner is asked: on a report, and no oftener than the decision interval."""

import math

from tandem.partition.monitor import Monitor
from tandem.partition.planner import Plan, Planner
from tandem.types import Split


class Steering:
    """A planner over what a monitor has collected."""

    def __init__(self, planner: Planner, monitor: Monitor, interval_s: float) -> None:
        self._planner = planner
        self._monitor = monitor
        self._interval_s = interval_s
        self._asked_s = -math.inf

    @property
    def name(self) -> str:
        """The planner's."""
        return self._planner.name

    @property
    def monitor(self) -> Monitor:
        """What the planner is told comes from it."""
        return self._monitor

    def plan(self, now_s: float, current: Split, splits: tuple[Split, ...], backend: str = "") -> Plan | None:
        """None before the next decision is due. Raises whatever the planner raises."""
        if now_s - self._asked_s < self._interval_s:
            return None
        self._asked_s = now_s
        return self._planner.plan(self._monitor.observations(now_s, splits, backend), current)

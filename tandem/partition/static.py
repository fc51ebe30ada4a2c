"""The planner that never moves: the split of the configuration."""

from dataclasses import dataclass

from tandem.partition.observations import Observations
from tandem.partition.planner import Plan
from tandem.types import Split


@dataclass(frozen=True, slots=True)
class StaticPlanner:
    """Plans `split`, whatever is observed."""

    split: Split

    @property
    def name(self) -> str:
        """As in configuration and logs."""
        return "static"

    def plan(self, observations: Observations, current: Split) -> Plan:
        """The configured split."""
        return Plan(self.split, "as configured")

"""What an engine is built from."""

from dataclasses import dataclass

from tandem.clock import Clock
from tandem.kv.store import HolderStore
from tandem.phase.crew import Crew
from tandem.phase.joint import JointWork
from tandem.phase.limits import PhaseLimits
from tandem.phase.supply import SupplyPolicy
from tandem.telemetry.metrics import PhaseMetrics


@dataclass(frozen=True, slots=True)
class Outfit:
    """Everything around an engine's own decisions; one for each attachment."""

    store: HolderStore
    holder_id: int
    limits: PhaseLimits
    supply_policy: SupplyPolicy
    steps: JointWork  # of the process: whose steps the engine takes part in
    metrics: PhaseMetrics
    crew: Crew
    clock: Clock

"""The planners by name."""

from collections.abc import Callable
from dataclasses import dataclass

from tandem.errors import ConfigError
from tandem.partition.planner import Planner
from tandem.partition.predictive import PredictivePlanner
from tandem.partition.semi_pd import SemiPdPlanner
from tandem.partition.slo import SloPolicy
from tandem.partition.static import StaticPlanner
from tandem.partition.step_times import StepLaws
from tandem.types import Split


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """What planners are made of; each takes what it knows."""

    initial: Split
    slos: SloPolicy
    margin: float
    laws: StepLaws | None = None  # None: what is known of the partition backend


PLANNERS: dict[str, Callable[[PlannerOptions], Planner]] = {
    "static": lambda options: StaticPlanner(options.initial),
    "semi-pd": lambda options: SemiPdPlanner(options.slos.deployment),
    "predictive": lambda options: PredictivePlanner(options.slos, options.laws, options.margin),
}


def make_planner(name: str, options: PlannerOptions) -> Planner:
    """The planner of that name. ConfigError when there is none."""
    if name not in PLANNERS:
        raise ConfigError("controller.planner", f"no planner {name!r}; there are {', '.join(PLANNERS)}")
    return PLANNERS[name](options)

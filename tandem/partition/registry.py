"""The planners by name."""

from collections.abc import Callable

from tandem.errors import ConfigError
from tandem.partition.planner import Planner
from tandem.partition.static import StaticPlanner
from tandem.types import Split

PLANNERS: dict[str, Callable[[Split], Planner]] = {
    "static": StaticPlanner,
}


def make_planner(name: str, initial: Split) -> Planner:
    """The planner of that name, starting from `initial`. ConfigError when there is none."""
    if name not in PLANNERS:
        raise ConfigError("controller.planner", f"no planner {name!r}; there are {', '.join(PLANNERS)}")
    return PLANNERS[name](initial)

"""The routers by name. A new one is a file, and a line here and in `RouterName`."""

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from tandem.config.settings import RouterName
from tandem.routing.cache_aware import CacheAware
from tandem.routing.router import LeastLoaded, RoundRobin, Router

ROUTERS: Mapping[RouterName, Callable[[random.Random], Router]] = MappingProxyType(
    {
        "round-robin": lambda rng: RoundRobin(),
        "least-loaded": lambda rng: LeastLoaded(),
        "cache-aware": CacheAware,
    }
)


def make_router(name: RouterName, seed: int) -> Router:
    """It chooses the same whenever it has the same seed and prospects."""
    return ROUTERS[name](random.Random(seed))  # noqa: S311 - exploration, not secrets

"""The orders by name. A new one is a file, and a line here and in `tandem.config.settings.QueuePolicy`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tandem.config.settings import QueuePolicy
from tandem.scheduler.fcfs import first_come_first_served
from tandem.scheduler.kvshare import KvShare
from tandem.scheduler.longest_prefix import longest_prefix_first
from tandem.scheduler.waiting import OrderingPolicy


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What orders can be told."""

    max_wait_s: float


POLICIES: Mapping[QueuePolicy, Callable[[PolicyOptions], OrderingPolicy[Any]]] = MappingProxyType(
    {
        "fcfs": lambda options: first_come_first_served(),
        "longest-prefix": lambda options: longest_prefix_first(),
        "kvshare": lambda options: KvShare(options.max_wait_s),
    }
)


def make_policy(name: QueuePolicy, options: PolicyOptions) -> OrderingPolicy[Any]:
    """An empty queue in that order."""
    return POLICIES[name](options)

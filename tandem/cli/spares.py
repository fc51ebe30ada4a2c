"""What the rest of the command line knows of spare workers: which phases have a steward, and its processes."""

from pathlib import Path

import psutil

from tandem.cli.deployment import Deployment
from tandem.phase.start_environment import StartEnvironment
from tandem.types import Phase

STEWARD = "tandem.cli.steward"  # a module to be run
FIXED_AT_START = frozenset({"mps-percentage"})  # partition backends


def needs_steward(deployment: Deployment, service: str) -> bool:
    """Whether it is a phase whose share is fixed when its process starts."""
    return service in set(Phase) and deployment.partition_backends[service] in FIXED_AT_START


def worker_pids(pid: int) -> tuple[int, ...]:
    """Of the processes that the service's has started; none when it is gone."""
    try:
        return tuple(child.pid for child in psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return ()


def forget_shares(run_dir: Path) -> None:
    """The phases start as configured, whatever those of an earlier deployment came to."""
    for phase in Phase:
        StartEnvironment(run_dir, phase).forget()

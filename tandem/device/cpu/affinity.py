"""`cpu-affinity`: a share of the machine is a set of cores and a number of threads."""

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from tandem.device.cpu.cores import CoreShare, core_splits, plan_cores
from tandem.device.cpu.team import PlaceTeam, bind_all_threads, leave_team, use_share
from tandem.device.partition import Applied, RestartRequired
from tandem.types import Phase, Split

CGROUP_ROOT = Path("/sys/fs/cgroup")


class CpuAffinityBackend:
    """Binds every thread of this process to its phase's cores. Made before the first `apply` of the process.

    `cores`: those that both phases share out; default: what the process may use now. A CPU quota of the control
    group does not say which cores, so it bounds the threads alone.
    """

    def __init__(
        self,
        cores: Sequence[int] | None = None,
        *,
        quota_cores: float | None = None,
        place: PlaceTeam = leave_team,
    ) -> None:
        self._cores = tuple(sorted(os.sched_getaffinity(0) if cores is None else cores))
        self._place = place
        self._quota_cores = cgroup_quota_cores() if quota_cores is None else quota_cores

    @property
    def name(self) -> str:
        """As in configuration and logs."""
        return "cpu-affinity"

    @property
    def splits(self) -> tuple[Split, ...]:
        """Whole cores for each."""
        return core_splits(len(self._cores))

    @property
    def pause(self) -> None:
        """Both phases run at once."""

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        """Called on the thread that computes: OpenMP keeps the number of threads for each calling thread.

        DeviceError when the cores are not to be had.
        """
        share = self.share(phase, split)
        bind_all_threads(share.cores)
        use_share(share, self._place)
        return Applied(f"cores {','.join(map(str, share.cores))}; threads {share.num_threads}")

    def share(self, phase: Phase, split: Split) -> CoreShare:
        """What `apply` gives; no more threads than the quota allows."""
        share = plan_cores(split, phase, self._cores)
        return replace(share, num_threads=max(1, math.ceil(min(share.num_threads, self._quota_cores))))

    def turn(self) -> AbstractContextManager[None]:
        """Both phases run at once."""
        return nullcontext()


def cgroup_quota_cores(root: Path = CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> float:
    """CPU time per time that this process's control group (version 2) and those above it allow; inf: no bound."""
    group = _cgroup_path(membership)
    if group is None:
        return math.inf
    folder = root / group
    folders = [folder, *folder.parents]
    return min(_quota(each / "cpu.max") for each in folders[: folders.index(root) + 1])


def _cgroup_path(membership: Path) -> str | None:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    paths = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    return paths[0] if paths and ".." not in paths[0] else None


def _quota(cpu_max: Path) -> float:
    """``<quota> <period>`` in microseconds, or ``max <period>``."""
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)

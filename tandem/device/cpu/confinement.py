"""Replicas side by side on one machine's processors: each has cores of its own, as if they were machines."""

import shutil
from collections.abc import Sequence

TASKSET = "taskset"


def replica_cores(replica: int, num_replicas: int, cores: Sequence[int]) -> tuple[int, ...]:
    """The replica's among `cores`, next to each other, as many as any other's or one more.

    Empty, which is no bound, for one replica and where there are fewer cores than replicas.
    """
    ordered = sorted(set(cores))
    if num_replicas == 1 or len(ordered) < num_replicas:
        return ()
    first, end = (len(ordered) * number // num_replicas for number in (replica, replica + 1))
    return tuple(ordered[first:end])


def confined(command: Sequence[str], cores: Sequence[int]) -> list[str]:
    """`command` on `cores` alone, with all that it starts; as it is without `cores`, or where there is no taskset.

    The process is the command's own: taskset becomes it.
    """
    if not cores or shutil.which(TASKSET) is None:
        return list(command)
    return [TASKSET, "--cpu-list", ",".join(map(str, cores)), *command]

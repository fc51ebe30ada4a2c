"""Where the replicas of one machine lie: the first in its deployment's run directory, each other in a folder there."""

from pathlib import Path

FOLDER = "replica-"


def replica_dir(run_dir: Path, replica: int) -> Path:
    """The run directory of the replica's services."""
    return run_dir / f"{FOLDER}{replica}" if replica else run_dir


def as_setting(run_dir: Path, num_replicas: int) -> str:
    """For the gateway's key `replicas`; empty where there is only the one in its run directory."""
    if num_replicas == 1:
        return ""
    return ",".join(str(replica_dir(run_dir, replica)) for replica in range(num_replicas))

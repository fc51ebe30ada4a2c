"""The partition backends by name; a backend's libraries are imported when it is chosen."""

from collections.abc import Callable

from tandem.device.partition import PartitionBackend
from tandem.errors import ConfigError


def _cpu_affinity() -> PartitionBackend:
    from tandem.device.cpu.affinity import CpuAffinityBackend

    return CpuAffinityBackend()


PARTITION_BACKENDS: dict[str, Callable[[], PartitionBackend]] = {
    "cpu-affinity": _cpu_affinity,
}


def make_partition_backend(name: str) -> PartitionBackend:
    """The backend of that name for this process. ConfigError when there is none."""
    if name not in PARTITION_BACKENDS:
        known = ", ".join(PARTITION_BACKENDS)
        raise ConfigError("partition_backend", f"no partition backend {name!r}; there are {known}")
    return PARTITION_BACKENDS[name]()

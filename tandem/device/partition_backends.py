"""The partition backends by name, and which is chosen where none is named; imported when chosen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from tandem.clock import MonotonicClock
from tandem.device.cpu.cores import available_cores
from tandem.device.cpu.team import PlaceTeam, leave_team
from tandem.device.cuda.driver import DriverApi, open_driver
from tandem.device.cuda.gpu import WHOLE_PERCENT, GpuFacts, GpuSearch, find_gpu, read_gpu, running_percentage
from tandem.device.cuda.health import check_device
from tandem.device.cuda.step_stream import UseStream, use_torch_stream
from tandem.device.partition import PartitionBackend
from tandem.device.whole import WholeDeviceBackend
from tandem.errors import ConfigError
from tandem.types import Phase

_log = structlog.get_logger()

AUTO = "auto"
GREEN_CONTEXTS_SINCE = (12, 4)  # CUDA
CORES_TO_SHARE_OUT = 6  # make five splits of whole cores


@dataclass(frozen=True, slots=True)
class PartitionSite:
    """Where a backend works: the phases of its process, and how that reaches its peer and the device."""

    phases: tuple[Phase, ...]
    run_dir: Path
    environ: Mapping[str, str]
    open_driver: Callable[[], DriverApi] = open_driver
    use_stream: UseStream = use_torch_stream
    place_team: PlaceTeam = leave_team
    has_steward: bool = False  # who starts another process for another share, while this one serves


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend's name, and why it is that one."""

    name: str
    reason: str


def _cpu_affinity(site: PartitionSite) -> PartitionBackend:
    from tandem.device.cpu.affinity import CpuAffinityBackend

    return CpuAffinityBackend(place=site.place_team)


def _cpu_cadence(site: PartitionSite) -> PartitionBackend:
    from tandem.device.cpu.affinity import CpuAffinityBackend
    from tandem.device.cpu.cadence_backend import CadenceClock, CpuCadenceBackend
    from tandem.device.cpu.presence import Presence

    phase = site.phases[0]
    presence, clock = Presence(site.run_dir, phase), CadenceClock(MonotonicClock())
    return CpuCadenceBackend(phase, presence, clock, CpuAffinityBackend(), site.place_team)


def _mps_green(site: PartitionSite) -> PartitionBackend:
    from tandem.device.cuda.green import GreenBackend

    return GreenBackend(site.open_driver(), site.phases, site.use_stream)


def _mps_percentage(site: PartitionSite) -> PartitionBackend:
    from tandem.device.cuda.percentage import PercentageBackend

    return PercentageBackend(read_gpu(site.open_driver()), site.environ, has_steward=site.has_steward)


def _timeshare(site: PartitionSite) -> PartitionBackend:
    from tandem.device.timeshare.backend import Pauses, TimeshareBackend
    from tandem.device.timeshare.seat import Seat

    clock = MonotonicClock()
    seat = Seat(site.run_dir, site.phases[0], clock)
    if find_gpu(site.open_driver).gpu is None:
        return TimeshareBackend(seat, lambda: None, clock, _cpu_affinity(site), Pauses.BETWEEN_LAYERS)
    end_work = partial(check_device, site.open_driver)
    return TimeshareBackend(seat, end_work, clock, WholeDeviceBackend(), Pauses.BETWEEN_STEPS)


PARTITION_BACKENDS: dict[str, Callable[[PartitionSite], PartitionBackend]] = {
    "cpu-affinity": _cpu_affinity,
    "cpu-cadence": _cpu_cadence,
    "mps-green": _mps_green,
    "mps-percentage": _mps_percentage,
    "timeshare": _timeshare,
}


def choose_partition_backend(
    configured: str, search: GpuSearch, environ: Mapping[str, str], *, num_cores: int
) -> BackendChoice:
    """Of `configured` and what was found. ConfigError for a name that is neither `auto` nor a backend's."""
    if configured == AUTO:
        return _best_on_gpu(search.gpu, environ) if search.gpu else _best_on_cpu(search.reason, num_cores)
    if configured not in PARTITION_BACKENDS:
        known = ", ".join((AUTO, *PARTITION_BACKENDS))
        raise ConfigError("partition_backend", f"no partition backend {configured!r}; there are {known}")
    return BackendChoice(configured, "configured")


def make_partition_backend(configured: str, site: PartitionSite) -> PartitionBackend:
    """For this process. ConfigError for an unknown name, DeviceError where the one that is named cannot work."""
    if len(site.phases) > 1:
        return _whole_device(site)
    search = find_gpu(site.open_driver) if configured == AUTO else GpuSearch(None)
    choice = choose_partition_backend(configured, search, site.environ, num_cores=available_cores())
    _log.info("partition.chosen", backend=choice.name, reason=choice.reason)
    return PARTITION_BACKENDS[choice.name](site)


def _whole_device(site: PartitionSite) -> PartitionBackend:
    if find_gpu(site.open_driver).gpu is not None:
        return WholeDeviceBackend()
    from tandem.device.cpu.all_cores import AllCoresBackend

    return AllCoresBackend(site.place_team)


def _best_on_cpu(reason: str, num_cores: int) -> BackendChoice:
    if num_cores < CORES_TO_SHARE_OUT:
        return BackendChoice("cpu-cadence", f"{reason}; {num_cores} cores are too few to share them out finely")
    return BackendChoice("cpu-affinity", reason)


def _best_on_gpu(gpu: GpuFacts, environ: Mapping[str, str]) -> BackendChoice:
    if not gpu.has_mps:
        reason = "no MPS (device attribute 133 is 0): two processes would take turns, whatever their SMs"
        return BackendChoice("timeshare", reason)
    percent = running_percentage(environ)
    if percent < WHOLE_PERCENT:
        return BackendChoice("mps-percentage", f"MPS keeps this process to {percent:g} % of the SMs from its start")
    if gpu.cuda_version < GREEN_CONTEXTS_SINCE:
        return BackendChoice("mps-percentage", f"MPS, but no green contexts: the driver serves CUDA {gpu.cuda_version}")
    return BackendChoice("mps-green", "MPS and green contexts")

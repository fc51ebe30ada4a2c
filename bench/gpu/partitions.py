"""The partition backends under a section's load: those of the phases, by name."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem.device.cuda.driver import DriverApi, check, open_driver
from tandem.device.cuda.gpu import GpuFacts, read_gpu
from tandem.device.cuda.green import DEVICE_ORDINAL, GreenBackend, cut_device, make_green_stream
from tandem.device.cuda.percentage import PercentageBackend
from tandem.device.cuda.sm_split import SmShare, describe
from tandem.device.partition import PartitionBackend
from tandem.device.partition_backends import PartitionSite, make_partition_backend
from tandem.device.whole import WholeDeviceBackend
from tandem.runner.cuda.graphs import StepStream
from tandem.types import Phase

GREEN, PERCENTAGE, TIMESHARE = "mps-green", "mps-percentage", "timeshare"
NO_GPU = GpuFacts("none", (13, 0), (9, 0), 132, 0, has_mps=True)  # what the environment says is all that is looked at


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """Of a process with one phase's load. `is_alone`: no other computes meanwhile; then green contexts need no MPS."""

    name: str
    run_dir: str  # where phases that take turns meet
    is_alone: bool
    is_dry: bool


def backend_of(choice: BackendChoice, phase: Phase, stream: StepStream) -> PartitionBackend:
    """As a phase makes it; where there is no GPU one that goes with a processor. DeviceError."""
    if choice.is_dry and choice.name in STAND_INS:
        return STAND_INS[choice.name](os.environ)
    if choice.name == GREEN and choice.is_alone:
        return GreenBackend(open_driver(), (phase,), stream.use, is_alone=True)
    site = PartitionSite((phase,), Path(choice.run_dir), os.environ, use_stream=stream.use, has_steward=True)
    return make_partition_backend(choice.name, site)


class SmallestShare:
    """One group of SMs for decode and the rest for prefill: less than any split on offer, for the table's end."""

    def __init__(self, driver: DriverApi, phase: Phase, stream: StepStream) -> None:
        """`driver` is initialised. DeviceError."""
        device = check(driver, driver.cuDeviceGet(DEVICE_ORDINAL), "cuDeviceGet")
        cut = cut_device(driver, device, read_gpu(driver, DEVICE_ORDINAL))
        last = cut.groups.num_groups - 1
        groups = range(last) if phase is Phase.PREFILL else range(last, last + 1)
        share = SmShare(groups, len(groups) * cut.groups.group_sms)
        self._use, self._num_sms = stream.use, share.num_sms
        self._made = make_green_stream(driver, device, cut, share)
        self._detail = describe(share, cut.groups)

    def apply(self) -> str:
        """From now on; no work of the thread is under way. What it is."""
        self._use(int(self._made.stream), self._num_sms)
        return self._detail


def _percentage(environ: Mapping[str, str]) -> PartitionBackend:
    return PercentageBackend(NO_GPU, environ, has_steward=True)


def _whole(_: Mapping[str, str]) -> PartitionBackend:
    return WholeDeviceBackend()


STAND_INS: Mapping[str, Callable[[Mapping[str, str]], PartitionBackend]] = {GREEN: _whole, PERCENTAGE: _percentage}

"""Partition backends by name, those for a GPU over the fake driver; and what is to be seen of what they did."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cuda.bindings import driver as real

from tandem.device.partition import PartitionBackend
from tandem.device.partition_backends import PartitionSite, make_partition_backend
from tandem.types import Phase
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_cuda.base import DeviceSpec


class GpuProcess:
    """What one process has of a fake GPU: its driver, and the SMs of its current stream."""

    def __init__(self, *, has_mps: bool = True, driver_version: int = 13000) -> None:
        spec = DeviceSpec(driver_version=driver_version)
        spec.attributes[real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MPS_ENABLED] = int(has_mps)
        self.cuda = FakeCuda(spec)
        self.sms: frozenset[int] = frozenset()

    def open_driver(self) -> FakeCuda:
        self.cuda.cuInit(0)
        return self.cuda

    def use_stream(self, handle: int, num_sms: int) -> None:
        self.sms = self.cuda.partition.streams[handle]

    def site(self, phases: Sequence[Phase], run_dir: Path, environ: Mapping[str, str] = os.environ) -> PartitionSite:
        return PartitionSite(tuple(phases), run_dir, environ, self.open_driver, self.use_stream)


def make_backend(name: str, phase: Phase, run_dir: Path) -> PartitionBackend:
    """As a process of that phase has it, on this machine's processor or on the fake GPU."""
    gpu = GpuProcess()
    on_gpu = name.startswith("mps-")
    site = gpu.site([phase], run_dir) if on_gpu else PartitionSite((phase,), run_dir, os.environ)
    return make_partition_backend(name, site)

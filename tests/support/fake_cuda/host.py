"""The fake driver as the program's own driver: what the real one is replaced by, in tests and in child processes."""

import ctypes
from typing import Any

import torch

from tandem.device.cpu.memory import MemfdImporter
from tandem.device.cuda.driver import check
from tandem.device.cuda.ipc_import import IpcImporter
from tandem.device.cuda.vmm_import import VmmImporter
from tandem.device.memory import SegmentKind
from tandem.device.memory_backends import Importers
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_cuda.base import DeviceSpec


def fake_driver(spec: DeviceSpec | None = None) -> FakeCuda:
    """Initialised, without a context, as `open_driver` leaves the real one."""
    driver = FakeCuda(spec)
    check(driver, driver.cuInit(0), "cuInit")
    return driver


def host_bytes(address: int, size_bytes: int) -> torch.Tensor:
    """The `ByteView` of the fake driver's memory, which is this machine's."""
    buffer: Any = (ctypes.c_ubyte * size_bytes).from_address(address)
    return torch.frombuffer(buffer, dtype=torch.uint8)


def importers_over(driver: FakeCuda) -> Importers:
    """Of every kind."""
    return {
        SegmentKind.MEMFD: MemfdImporter,
        SegmentKind.CUDA_VMM: lambda: VmmImporter(driver, host_bytes),
        SegmentKind.CUDA_IPC: lambda: IpcImporter(driver, host_bytes),
    }

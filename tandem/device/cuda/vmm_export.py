"""Device memory without a context: created, exported as a descriptor, and never mapped by its owner.

The calls are cuInit (by `open_driver`), cuDeviceGet, cuMemGetAllocationGranularity, cuMemCreate,
cuMemExportToShareableHandle and cuMemRelease, none of which makes or needs a context: memd is no client of MPS and has
nothing on the device that a fault could take down.
"""

import os
from typing import Any

from tandem.device.cuda.driver import DriverApi, check
from tandem.device.memory import SegmentKind
from tandem.device.owned_segment import OwnedSegment
from tandem.errors import DeviceError, DeviceFaultError


class VmmSegment(OwnedSegment):
    """A descriptor that alone keeps the memory: importers, and a keeper, may outlive the process that made it.

    Sealed or not, the driver itself would map it writable.
    """

    def __init__(self, name: str, fd: int, size_bytes: int) -> None:
        super().__init__(name, fd, size_bytes, SegmentKind.CUDA_VMM)


class VmmExporter:
    """Creates device memory by the driver's virtual memory management."""

    def __init__(self, driver: DriverApi, ordinal: int = 0) -> None:
        """`driver` is initialised. DeviceError when the device has no such memory."""
        self._driver = driver
        self._prop = exportable_properties(driver, ordinal)
        self._granularity_bytes = granularity_bytes(driver, self._prop)

    @property
    def kind(self) -> SegmentKind:
        """See `MemoryExporter`."""
        return SegmentKind.CUDA_VMM

    def create(self, name: str, size_bytes: int) -> VmmSegment:
        """Memory that holds anything, its size rounded up to the granularity. DeviceError with sizes and remedy."""
        rounded = -(-size_bytes // self._granularity_bytes) * self._granularity_bytes
        try:
            return VmmSegment(name, self._export(rounded), rounded)
        except DeviceFaultError:
            raise
        except DeviceError as error:
            raise not_to_be_had(name, rounded, str(error)) from error

    def _export(self, size_bytes: int) -> int:
        driver = self._driver
        handle = check(driver, driver.cuMemCreate(size_bytes, self._prop, 0), "cuMemCreate")
        try:
            exported = driver.cuMemExportToShareableHandle(handle, self._prop.requestedHandleTypes, 0)
            fd = int(check(driver, exported, "cuMemExportToShareableHandle"))
        finally:
            check(driver, driver.cuMemRelease(handle), "cuMemRelease")  # the descriptor is a reference of its own
        os.set_inheritable(fd, False)
        return fd


def exportable_properties(driver: DriverApi, ordinal: int) -> Any:
    """A CUmemAllocationProp: memory of the device, exportable as a descriptor. DeviceError: no such device."""
    device = check(driver, driver.cuDeviceGet(ordinal), "cuDeviceGet")
    prop = driver.CUmemAllocationProp()
    prop.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    prop.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    prop.location.id = int(device)
    prop.requestedHandleTypes = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    return prop


def granularity_bytes(driver: DriverApi, prop: Any) -> int:
    """What sizes and addresses of such memory are multiples of."""
    option = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    granularity = driver.cuMemGetAllocationGranularity(prop, option)
    return int(check(driver, granularity, "cuMemGetAllocationGranularity"))


def not_to_be_had(name: str, size_bytes: int, problem: str) -> DeviceError:
    """For every exporter of device memory; `problem` is what the driver said."""
    mib = size_bytes / (1 << 20)
    remedy = "free memory of the device (nvidia-smi shows who has it), or lower memd.kv_bytes"
    return DeviceError(f"segment {name} needs {mib:.0f} MiB, which the device did not give: {problem}: {remedy}")

"""Device memory that came as a descriptor, mapped at an address of ours."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tandem.device.cuda.driver import DriverApi, check
from tandem.device.cuda.primary_context import PrimaryContext
from tandem.device.cuda.views import ByteView, device_bytes
from tandem.device.memory import SegmentHandle
from tandem.device.tensor_views import tensor_view
from tandem.errors import DeviceError, DeviceFaultError

if TYPE_CHECKING:
    import torch


class AddressRange:
    """Reserved addresses of the device, which stay the same whatever is mapped there, if anything."""

    def __init__(self, driver: DriverApi, context: PrimaryContext, ordinal: int, size_bytes: int) -> None:
        """`size_bytes`: a multiple of the granularity. DeviceError."""
        self._driver = driver
        self._context = context
        self._ordinal = ordinal
        self.size_bytes = size_bytes
        self._pointer = check(driver, driver.cuMemAddressReserve(size_bytes, 0, 0, 0), "cuMemAddressReserve")

    @property
    def address(self) -> int:
        """Where it starts."""
        return int(self._pointer)

    def map(self, memory: Any, *, writable: bool) -> None:
        """Puts `memory` (a CUmemGenericAllocationHandle) there; a device's write faults unless `writable`."""
        driver = self._driver
        with self._context.current():
            check(driver, driver.cuMemMap(self._pointer, self.size_bytes, 0, memory, 0), "cuMemMap")
            try:
                access = [self._access(writable)]
                granted = driver.cuMemSetAccess(self._pointer, self.size_bytes, access, len(access))
                check(driver, granted, "cuMemSetAccess")
            except DeviceError:
                driver.cuMemUnmap(self._pointer, self.size_bytes)
                raise

    def unmap(self) -> None:
        """Waits for the device first: a kernel that still reads there would fault. The addresses stay reserved."""
        self._context.synchronize()
        with self._context.current():
            check(self._driver, self._driver.cuMemUnmap(self._pointer, self.size_bytes), "cuMemUnmap")

    def free(self) -> None:
        """Gives the addresses up; nothing is mapped there."""
        check(self._driver, self._driver.cuMemAddressFree(self._pointer, self.size_bytes), "cuMemAddressFree")

    def _access(self, writable: bool) -> Any:
        flags = self._driver.CUmemAccess_flags
        access = self._driver.CUmemAccessDesc()
        access.location.type = self._driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = self._ordinal
        access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE if writable else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        return access


class VmmMapping:
    """A segment in this process. A write through a read-only one is a fault of the device, and the process's end."""

    def __init__(self, place: AddressRange, view: ByteView) -> None:
        """Owns `place`, where the segment is mapped."""
        self._place = place
        self._bytes = view(place.address, place.size_bytes)

    @property
    def size_bytes(self) -> int:
        """Of the mapping."""
        return self._place.size_bytes

    def tensor(self, dtype: str, shape: Sequence[int], offset_bytes: int = 0) -> "torch.Tensor":
        """A view of `shape`. ValueError when it would reach past the end, or starts between two elements."""
        return tensor_view(self._bytes, dtype, shape, offset_bytes)

    def close(self) -> None:
        """Waits for the device's work and unmaps: the memory under any tensor of it is gone."""
        self._place.unmap()
        self._place.free()


class VmmImporter:
    """Maps memory that another process exported by `VmmExporter`."""

    def __init__(self, driver: DriverApi, view: ByteView = device_bytes, ordinal: int = 0) -> None:
        """`driver` is initialised; makes the device's primary context unless torch has. DeviceError."""
        self._driver = driver
        self._view = view
        self._ordinal = ordinal
        self._context = PrimaryContext(driver, ordinal)

    def map(self, handle: SegmentHandle, *, writable: bool) -> VmmMapping:
        """DeviceError when it is sealed and `writable`, or when the driver cannot map it."""
        refuse_sealed(handle, writable=writable)
        try:
            return VmmMapping(self._place(handle, writable=writable), self._view)
        except DeviceFaultError:
            raise
        except DeviceError as error:
            raise DeviceError(f"a segment of {handle.size_bytes} bytes cannot be mapped: {error}") from error

    def free_bytes(self) -> int:
        """Of the device's memory."""
        return self._context.free_bytes()

    def _place(self, handle: SegmentHandle, *, writable: bool) -> AddressRange:
        driver = self._driver
        kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        imported = driver.cuMemImportFromShareableHandle(handle.fd, kind)
        memory = check(driver, imported, "cuMemImportFromShareableHandle")
        try:
            place = AddressRange(driver, self._context, self._ordinal, handle.size_bytes)
            try:
                place.map(memory, writable=writable)
            except DeviceError:
                place.free()
                raise
        finally:
            check(driver, driver.cuMemRelease(memory), "cuMemRelease")  # the mapping is a reference of its own
        return place


def refuse_sealed(handle: SegmentHandle, *, writable: bool) -> None:
    """DeviceError: what the driver would not refuse, every importer of device memory does."""
    if handle.sealed and writable:
        raise DeviceError(f"a segment of {handle.size_bytes} bytes cannot be mapped: it is sealed: map it read-only")

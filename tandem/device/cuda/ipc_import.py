"""Maps device memory of legacy CUDA IPC: see `tandem.device.cuda.ipc_export`."""

import ctypes
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tandem.device.cuda.driver import DriverApi, check
from tandem.device.cuda.ipc_holder import HANDLE_BYTES
from tandem.device.cuda.primary_context import PrimaryContext
from tandem.device.cuda.views import ByteView, device_bytes
from tandem.device.cuda.vmm_import import refuse_sealed
from tandem.device.memory import SegmentHandle
from tandem.device.tensor_views import tensor_view
from tandem.errors import DeviceError, DeviceFaultError

if TYPE_CHECKING:
    import torch

MAX_DESCRIPTION_BYTES = 4096


@dataclass(frozen=True, slots=True)
class IpcDescription:
    """What a segment's memfd says: the handle's 64 bytes, and the size of the memory."""

    handle: bytes
    size_bytes: int


class IpcMapping:
    """A segment in this process, at an address of the driver's choice. The device can always write through it."""

    def __init__(self, driver: DriverApi, context: PrimaryContext, pointer: Any, view: "torch.Tensor") -> None:
        """`pointer`: opened by cuIpcOpenMemHandle; `view`: uint8 ``[size_bytes]`` over it."""
        self._driver = driver
        self._context = context
        self._pointer = pointer
        self._bytes = view

    @property
    def size_bytes(self) -> int:
        """Of the mapping."""
        return self._bytes.numel()

    def tensor(self, dtype: str, shape: Sequence[int], offset_bytes: int = 0) -> "torch.Tensor":
        """A view of `shape`. ValueError when it would reach past the end, or starts between two elements."""
        return tensor_view(self._bytes, dtype, shape, offset_bytes)

    def close(self) -> None:
        """Waits for the device's work and unmaps; other mappings of the segment in this process stay."""
        self._context.synchronize()
        with self._context.current():
            check(self._driver, self._driver.cuIpcCloseMemHandle(self._pointer), "cuIpcCloseMemHandle")


class IpcImporter:
    """Maps memory that a holder exported."""

    def __init__(self, driver: DriverApi, view: ByteView = device_bytes, ordinal: int = 0) -> None:
        """`driver` is initialised; makes the device's primary context unless torch has. DeviceError."""
        self._driver = driver
        self._view = view
        self._context = PrimaryContext(driver, ordinal)

    def map(self, handle: SegmentHandle, *, writable: bool) -> IpcMapping:
        """DeviceError: it is sealed and `writable`, it has another size, or the driver cannot map it."""
        refuse_sealed(handle, writable=writable)
        described = read_description(handle.fd)
        if described.size_bytes != handle.size_bytes:
            raise DeviceError(f"the segment has {described.size_bytes} bytes, not the {handle.size_bytes} announced")
        try:
            pointer = self._open(described.handle)
        except DeviceFaultError:
            raise
        except DeviceError as error:
            raise DeviceError(f"a segment of {handle.size_bytes} bytes cannot be mapped: {error}") from error
        return IpcMapping(self._driver, self._context, pointer, self._view(int(pointer), described.size_bytes))

    def free_bytes(self) -> int:
        """Of the device's memory."""
        return self._context.free_bytes()

    def _open(self, handle: bytes) -> Any:
        driver = self._driver
        opened = driver.CUipcMemHandle()
        ctypes.memmove(opened.getPtr(), handle, HANDLE_BYTES)
        flag = int(driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
        with self._context.current():
            return check(driver, driver.cuIpcOpenMemHandle(opened, flag), "cuIpcOpenMemHandle")


def read_description(fd: int) -> IpcDescription:
    """What `fd` holds. DeviceError when it is none of ours."""
    try:
        said = json.loads(os.pread(fd, MAX_DESCRIPTION_BYTES, 0))
        described = IpcDescription(bytes.fromhex(said["handle"]), int(said["size_bytes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"the descriptor holds no CUDA IPC handle: {error!r}") from error
    if len(described.handle) != HANDLE_BYTES:
        raise DeviceError(f"a CUDA IPC handle has {HANDLE_BYTES} bytes, not {len(described.handle)}")
    return described

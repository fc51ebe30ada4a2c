"""Device memory of the fake driver: a memfd for each allocation, so that several processes really share it.

What a device may not do faults here as well: an address without access is mapped ``PROT_NONE``, a read-only one
``PROT_READ``. New memory holds `POISON`, for a driver promises no zeroes.
"""

import ctypes
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda.bindings import driver as real

from tests.support.fake_cuda.base import Attribute, Base, Refused, driver_call

GRANULARITY = 2 << 20
POISON = 0xA5
MAP_FIXED = 0x10
IPC_BYTES = 64
IPC_HANDLE = struct.Struct("=8sqqq")  # a mark, the process, its descriptor, the size
IPC_MARK = b"fake-ipc"
LAZY_PEER_ACCESS = 1
FILE_NAME = "fake-cuda"

Result = real.CUresult
_Flags = real.CUmemAccess_flags
_PROTECTIONS = {
    _Flags.CU_MEM_ACCESS_FLAGS_PROT_NONE: 0,
    _Flags.CU_MEM_ACCESS_FLAGS_PROT_READ: mmap.PROT_READ,
    _Flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE: mmap.PROT_READ | mmap.PROT_WRITE,
}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@dataclass
class Allocation:
    """Physical memory, as long as a handle or a mapping refers to it."""

    fd: int
    size: int
    exportable: bool
    references: int = 1


class MemoryCalls:
    """Virtual memory management and the older IPC. Tests read `owned_bytes` and `leaks`."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._handles: dict[int, Allocation] = {}
        self._reserved: dict[int, int] = {}  # address: size
        self._mapped: dict[int, tuple[int, Allocation]] = {}  # address: size, memory
        self._allocated: dict[int, Allocation] = {}  # by cuMemAlloc
        self._opened: dict[int, tuple[bytes, int, int]] = {}  # by cuIpcOpenMemHandle: handle, size, times
        self._taken: dict[int, int] = {}  # inode: size, of the memory that was not imported
        self._next_handle = 0x1000

    @property
    def owned_bytes(self) -> int:
        """Memory taken from the device by this process and referred to in it: a handle, a mapping, a descriptor."""
        alive = {os.fstat(fd).st_ino for fd in _open_fds()}
        return sum(size for inode, size in self._taken.items() if inode in alive)

    @property
    def leaks(self) -> dict[str, int]:
        """What is not given back yet, by kind."""
        counted = {
            "handles": len(self._handles),
            "reservations": len(self._reserved),
            "mappings": len(self._mapped),
            "allocations": len(self._allocated),
            "opened": len(self._opened),
        }
        return {kind: number for kind, number in counted.items() if number}

    @driver_call()
    def cuMemGetAllocationGranularity(self, prop: Any, option: Any) -> int:  # noqa: N802
        self._check_prop(prop)
        return GRANULARITY

    @driver_call()
    def cuMemCreate(self, size: int, prop: Any, flags: int) -> Any:  # noqa: N802
        self._check_prop(prop)
        _refuse_if(flags or size <= 0 or size % GRANULARITY)
        exportable = int(prop.requestedHandleTypes) == 1
        if exportable and not self._has(Attribute.CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED):
            raise Refused(Result.CUDA_ERROR_NOT_SUPPORTED)
        return self._new_handle(self._take(size, exportable=exportable))

    @driver_call()
    def cuMemExportToShareableHandle(self, handle: Any, kind: Any, flags: int) -> int:  # noqa: N802
        memory = self._handle(handle)
        posix = real.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        _refuse_if(flags or kind != posix or not memory.exportable)
        return os.dup(memory.fd)

    @driver_call()
    def cuMemImportFromShareableHandle(self, fd: int, kind: Any) -> Any:  # noqa: N802
        _refuse_if(kind != real.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        _refuse_if(not _is_ours(fd))
        memory = Allocation(os.dup(fd), os.fstat(fd).st_size, exportable=True)
        return self._new_handle(memory)

    @driver_call()
    def cuMemRelease(self, handle: Any) -> None:  # noqa: N802
        memory = self._handle(handle)
        del self._handles[int(handle)]
        _let_go(memory)

    @driver_call()
    def cuMemAddressReserve(self, size: int, alignment: int, address: Any, flags: int) -> Any:  # noqa: N802
        _refuse_if(flags or size <= 0 or size % GRANULARITY or alignment not in (0, GRANULARITY))
        place = _reserve(size)
        self._reserved[place] = size
        return real.CUdeviceptr(place)

    @driver_call()
    def cuMemAddressFree(self, address: Any, size: int) -> None:  # noqa: N802
        start = int(address)
        _refuse_if(self._reserved.get(start) != size or self._mappings_in(start, size))
        del self._reserved[start]
        _libc.munmap(start, size)

    @driver_call(needs_context=True)
    def cuMemMap(self, address: Any, size: int, offset: int, handle: Any, flags: int) -> None:  # noqa: N802
        start, memory = int(address), self._handle(handle)
        _refuse_if(flags or offset or size <= 0 or size % GRANULARITY or start % GRANULARITY or size > memory.size)
        _refuse_if(not self._is_reserved(start, size) or self._mappings_in(start, size))
        memory.references += 1
        self._mapped[start] = (size, memory)

    @driver_call(needs_context=True)
    def cuMemSetAccess(self, address: Any, size: int, descriptions: Any, count: int) -> None:  # noqa: N802
        start = int(address)
        _refuse_if(count != 1 or len(descriptions) != 1)
        (description,) = descriptions
        self._check_location(description.location)
        mapped_size, memory = self._mapped.get(start, (0, None))
        if memory is None or mapped_size != size:
            raise Refused(Result.CUDA_ERROR_INVALID_VALUE)
        _map_at(start, size, _PROTECTIONS[description.flags], memory.fd)

    @driver_call(needs_context=True)
    def cuMemUnmap(self, address: Any, size: int) -> None:  # noqa: N802
        start = int(address)
        mapped_size, memory = self._mapped.get(start, (0, None))
        if memory is None or mapped_size != size:
            raise Refused(Result.CUDA_ERROR_INVALID_VALUE)
        del self._mapped[start]
        _map_at(start, size, 0, None)
        _let_go(memory)

    @driver_call(needs_context=True)
    def cuMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        total = self.base.spec.memory_bytes
        return total - self.owned_bytes, total

    @driver_call(needs_context=True)
    def cuMemAlloc(self, size: int) -> Any:  # noqa: N802
        _refuse_if(size <= 0)
        memory = self._take(size, exportable=False)
        address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, memory.fd, 0)
        self._allocated[address] = memory
        return real.CUdeviceptr(address)

    @driver_call(needs_context=True)
    def cuMemFree(self, address: Any) -> None:  # noqa: N802
        _refuse_if(int(address) not in self._allocated)
        memory = self._allocated.pop(int(address))
        _libc.munmap(int(address), memory.size)
        _let_go(memory)

    @driver_call(needs_context=True)
    def cuIpcGetMemHandle(self, address: Any) -> Any:  # noqa: N802
        _refuse_if(int(address) not in self._allocated)
        memory = self._allocated[int(address)]
        handle = real.CUipcMemHandle()
        packed = IPC_HANDLE.pack(IPC_MARK, os.getpid(), memory.fd, memory.size).ljust(IPC_BYTES, b"\0")
        ctypes.memmove(handle.getPtr(), packed, IPC_BYTES)
        return handle

    @driver_call(needs_context=True)
    def cuIpcOpenMemHandle(self, handle: Any, flags: int) -> Any:  # noqa: N802
        _refuse_if(flags != LAZY_PEER_ACCESS)
        packed = ctypes.string_at(handle.getPtr(), IPC_BYTES)
        for address, (opened, size, times) in self._opened.items():
            if opened == packed:
                self._opened[address] = (packed, size, times + 1)
                return real.CUdeviceptr(address)
        address, size = _open_ipc(packed)
        self._opened[address] = (packed, size, 1)
        return real.CUdeviceptr(address)

    @driver_call(needs_context=True)
    def cuIpcCloseMemHandle(self, address: Any) -> None:  # noqa: N802
        start = int(address)
        _refuse_if(start not in self._opened)
        packed, size, times = self._opened.pop(start)
        if times > 1:
            self._opened[start] = (packed, size, times - 1)
        else:
            _libc.munmap(start, size)

    def _take(self, size: int, *, exportable: bool) -> Allocation:
        if self.owned_bytes + size > self.base.spec.memory_bytes:
            raise Refused(Result.CUDA_ERROR_OUT_OF_MEMORY)
        fd = os.memfd_create(FILE_NAME, os.MFD_CLOEXEC)
        os.pwrite(fd, bytes([POISON]) * size, 0)
        self._taken[os.fstat(fd).st_ino] = size
        return Allocation(fd, size, exportable)

    def _new_handle(self, memory: Allocation) -> Any:
        self._next_handle += 1
        self._handles[self._next_handle] = memory
        return real.CUmemGenericAllocationHandle(self._next_handle)

    def _handle(self, handle: Any) -> Allocation:
        """Refused when it was released, which the real driver does not promise to notice."""
        _refuse_if(int(handle) not in self._handles)
        return self._handles[int(handle)]

    def _has(self, attribute: Any) -> bool:
        return bool(self.base.spec.attributes.get(attribute, 0))

    def _check_prop(self, prop: Any) -> None:
        if not self._has(Attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED):
            raise Refused(Result.CUDA_ERROR_NOT_SUPPORTED)
        _refuse_if(prop.type != real.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED)
        self._check_location(prop.location)

    def _check_location(self, location: Any) -> None:
        _refuse_if(location.type != real.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE)
        self.base.check_device(location.id)

    def _is_reserved(self, start: int, size: int) -> bool:
        return any(at <= start and start + size <= at + length for at, length in self._reserved.items())

    def _mappings_in(self, start: int, size: int) -> bool:
        return any(at < start + size and start < at + length for at, (length, _) in self._mapped.items())


def _refuse_if(wrong: object) -> None:
    if wrong:
        raise Refused(Result.CUDA_ERROR_INVALID_VALUE)


def _let_go(memory: Allocation) -> None:
    memory.references -= 1
    if not memory.references:
        os.close(memory.fd)


def _is_ours(fd: int) -> bool:
    return fd in _open_fds()


def _open_fds() -> list[int]:
    """Descriptors of this process that refer to a fake device's memory."""
    links = [(int(link.name), _target(link)) for link in Path("/proc/self/fd").iterdir()]
    return [fd for fd, target in links if target.startswith(f"/memfd:{FILE_NAME}")]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # closed meanwhile


def _reserve(size: int) -> int:
    """An address range without access, aligned to the granularity."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start: int = _libc.mmap(None, size + GRANULARITY, 0, flags, -1, 0)
    place = -(-start // GRANULARITY) * GRANULARITY
    if place > start:
        _libc.munmap(start, place - start)
    _libc.munmap(place + size, start + GRANULARITY - place)
    return place


def _map_at(start: int, size: int, protection: int, fd: int | None) -> None:
    """In place of what is mapped there; without `fd`: nothing, but the range stays taken."""
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if fd is None else mmap.MAP_SHARED
    _libc.mmap(start, size, protection, kind | MAP_FIXED, -1 if fd is None else fd, 0)


def _open_ipc(packed: bytes) -> tuple[int, int]:
    """Through /proc, so it needs the exporter's process alive and its number valid here, as the real call does."""
    mark, pid, fd, size = IPC_HANDLE.unpack_from(packed)
    _refuse_if(mark != IPC_MARK)
    if pid == os.getpid():
        raise Refused(Result.CUDA_ERROR_INVALID_CONTEXT)
    try:
        opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        raise Refused(Result.CUDA_ERROR_MAP_FAILED) from None
    try:
        return _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, opened, 0), size
    finally:
        os.close(opened)

"""Segments in a machine's own memory: anonymous files (memfd) that several processes map."""

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandem.device.cpu.aligned_mapping import AlignedMapping
from tandem.device.memory import SegmentHandle, SegmentKind
from tandem.device.owned_segment import OwnedSegment
from tandem.device.tensor_views import tensor_view
from tandem.errors import DeviceError

if TYPE_CHECKING:
    import torch

F_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1; not in the fcntl module
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """What the machine, and the control group of this process, can still give."""
    return min(_numbers())


def _numbers() -> Iterator[int]:
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) << 10
    limit = CGROUP / "memory.max"
    if limit.exists() and (max_bytes := limit.read_text().strip()) != "max":
        yield max(0, int(max_bytes) - _kept_bytes())


def _kept_bytes() -> int:
    """Of what the control group has: all but the cached files, which go when the memory is wanted."""
    sizes = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    return int((CGROUP / "memory.current").read_text()) - int(sizes["active_file"]) - int(sizes["inactive_file"])


class MemfdSegment(OwnedSegment):
    """A memfd, shown as ``memfd:tandem-NAME`` in ``/proc/PID/maps``. Its size is fixed from the start, so no mapping
    can lose its memory.
    """

    def __init__(self, name: str, fd: int, size_bytes: int) -> None:
        super().__init__(name, fd, size_bytes, SegmentKind.MEMFD)

    def seal(self) -> None:
        """Refuses writable mappings from now on; those that exist stay."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
        super().seal()


class MemfdExporter:
    """Creates memfd segments. `available` says how many bytes can be had."""

    def __init__(self, available: Callable[[], int] = available_bytes) -> None:
        self._available = available

    @property
    def kind(self) -> SegmentKind:
        """See `MemoryExporter`."""
        return SegmentKind.MEMFD

    def create(self, name: str, size_bytes: int) -> MemfdSegment:
        """A zeroed segment, whose pages are taken as they are first written.

        DeviceError when the machine has not that much memory left.
        """
        available = self._available()
        if size_bytes > available:
            raise DeviceError(_too_large(name, size_bytes, f"{_mib(available)} are available"))
        fd = os.memfd_create(f"tandem-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except OSError as error:
            os.close(fd)
            raise DeviceError(_too_large(name, size_bytes, str(error.strerror))) from error
        return MemfdSegment(name, fd, size_bytes)


class MemfdMapping:
    """A mapping of a segment; with ``PROT_READ`` alone a store through it is a SIGSEGV."""

    def __init__(self, mapping: AlignedMapping) -> None:
        self._mapping = mapping
        self._bytes = _bytes_of(mapping)

    @property
    def size_bytes(self) -> int:
        """Of the mapping."""
        return self._mapping.size_bytes

    def tensor(self, dtype: str, shape: Sequence[int], offset_bytes: int = 0) -> "torch.Tensor":
        """A view of `shape`. ValueError when it would reach past the end, or starts between two elements."""
        import torch

        return tensor_view(torch.frombuffer(self._bytes, dtype=torch.uint8), dtype, shape, offset_bytes)

    def close(self) -> None:
        """Unmaps: the memory under any tensor of it is gone."""
        self._mapping.close()


class MemfdImporter:
    """Maps memfd segments that came from another process."""

    def map(self, handle: SegmentHandle, *, writable: bool) -> MemfdMapping:
        """DeviceError when the file has another size, or is sealed against writing."""
        size_bytes, actual = handle.size_bytes, os.fstat(handle.fd).st_size
        if actual != size_bytes:
            raise DeviceError(f"the segment has {actual} bytes, not the {size_bytes} announced")
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        try:
            return MemfdMapping(AlignedMapping(handle.fd, size_bytes, protection))
        except OSError as error:
            sealed = error.errno == errno.EPERM and writable
            why = "it is sealed: map it read-only" if sealed else error.strerror
            raise DeviceError(f"a segment of {size_bytes} bytes cannot be mapped: {why}") from error

    def free_bytes(self) -> int:
        """See `available_bytes`."""
        return available_bytes()


def _bytes_of(mapping: AlignedMapping) -> Any:
    """The mapping as a buffer that torch takes without a warning of what is read-only; keeps the mapping alive."""
    view: Any = (ctypes.c_ubyte * mapping.size_bytes).from_address(mapping.address)
    view.mapping = mapping
    return view


def _too_large(name: str, size_bytes: int, problem: str) -> str:
    return f"segment {name} needs {_mib(size_bytes)}, {problem}: free memory, or lower memd.kv_bytes"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"

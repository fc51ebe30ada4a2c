"""Mappings that huge pages fit into: who reads a whole model needs one page table entry in place of 512.

A file's memory comes as huge pages only where it is asked for, or is made so afterwards by `collapse`. Whoever maps it
then has them too, if the mapping begins at a multiple of a huge page.
"""

import ctypes
import mmap
import os

HUGE_PAGE_BYTES = 2 << 20
MADV_COLLAPSE = 25  # Linux 6.1; not in the mmap module
MADV_POPULATE_WRITE = 23  # Linux 5.14; likewise
_PROT_NONE, _MAP_FIXED = 0, 0x10  # nor these
_RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


class AlignedMapping:
    """A file's first `size_bytes`, shared, from an address that is a multiple of a huge page. OSError."""

    def __init__(self, fd: int, size_bytes: int, protection: int) -> None:
        """`protection` as of `mmap.mmap`. The descriptor stays the caller's."""
        self.size_bytes = size_bytes
        self._reserved_bytes = size_bytes + HUGE_PAGE_BYTES
        self._reserved = _map(None, self._reserved_bytes, _PROT_NONE, _RESERVED, -1)
        self.address = -(-self._reserved // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        try:
            _map(self.address, size_bytes, protection, mmap.MAP_SHARED | _MAP_FIXED, fd)
        except OSError:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Unmaps; again, nothing."""
        reserved, self._reserved = getattr(self, "_reserved", 0), 0
        if reserved:
            _libc.munmap(reserved, self._reserved_bytes)


def collapse(address: int, size_bytes: int) -> None:
    """Moves the memory of a mapping to huge pages, as far as whole ones lie in it.

    OSError: the kernel knows no such thing, or could not for a part of it. The content stays as it is in any case.
    """
    if _libc.madvise(address, size_bytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES, MADV_COLLAPSE):
        raise _error()


def populate(address: int, size_bytes: int) -> None:
    """Has the memory of a writable mapping made, from a page's first byte on; what is in it stays.

    OSError: the kernel knows no such thing, or has no memory left.
    """
    if _libc.madvise(address, size_bytes, MADV_POPULATE_WRITE):
        raise _error()


def _map(address: int | None, size_bytes: int, protection: int, flags: int, fd: int) -> int:
    mapped: int = _libc.mmap(address, size_bytes, protection, flags, fd, 0)
    if mapped == _FAILED:
        raise _error()
    return mapped


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))

"""Device memory for drivers that cannot export it as a descriptor: legacy CUDA IPC.

Exporting it needs a context, which memd has not: a child process, the holder, owns memory and context. What travels is
a memfd with the 64-byte handle in it. Less holds than with `VmmExporter`: the memory ends with the holder and so with
memd, a mapping cannot be read-only, and importers need the holder's PID namespace.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from tandem.device.cuda.vmm_export import not_to_be_had
from tandem.device.memory import SegmentKind
from tandem.device.owned_segment import OwnedSegment
from tandem.errors import DeviceError

HOLDER_MODULE = "tandem.device.cuda.ipc_holder"
HOLDER_TIMEOUT_S = 60.0
RECEIVE_BYTES = 4096
BLOCK_BYTES = 2 << 20
"""Sizes are multiples of it: the driver cuts smaller allocations out of blocks that a handle would share whole."""


class IpcSegment(OwnedSegment):
    """A memfd that names memory of the holder. Sealed or not, the driver knows no read-only mapping of this kind."""

    def __init__(self, name: str, fd: int, size_bytes: int, free: Callable[[], None]) -> None:
        """`free` ends the memory."""
        super().__init__(name, fd, size_bytes, SegmentKind.CUDA_IPC)
        self._free = free

    def close(self) -> None:
        """Frees the memory; every importer has unmapped it."""
        super().close()
        self._free()


class IpcExporter:
    """Creates device memory in a holder, which runs as long as a segment is not closed."""

    def __init__(self, on_lost: Callable[[], None], module: str = HOLDER_MODULE) -> None:
        """`on_lost`: called in a thread of its own when the holder ends by itself, and every segment with it."""
        self._on_lost = on_lost
        self._module = module
        self._holder: Holder | None = None
        self._num_segments = 0

    @property
    def kind(self) -> SegmentKind:
        """See `MemoryExporter`."""
        return SegmentKind.CUDA_IPC

    def create(self, name: str, size_bytes: int) -> IpcSegment:
        """Memory that holds anything, its size rounded up to 2 MiB. DeviceError with sizes and remedy."""
        rounded = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        self._num_segments += 1
        try:
            handle = self._ensure_holder().allocate(rounded)
        except DeviceError as error:
            self._end_one()
            raise not_to_be_had(name, rounded, str(error)) from error
        fd = write_handle(handle, rounded)
        return IpcSegment(name, fd, rounded, lambda: self._free(handle))

    def _ensure_holder(self) -> "Holder":
        if self._holder is None:
            self._holder = Holder(self._module, self._on_lost)
        return self._holder

    def _free(self, handle: str) -> None:
        if self._holder is not None:
            self._holder.free(handle)
        self._end_one()

    def _end_one(self) -> None:
        self._num_segments -= 1
        if not self._num_segments and self._holder is not None:
            self._holder.close()
            self._holder = None


class Holder:
    """The child process, from its making until `close`."""

    def __init__(self, module: str, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        self._closing = False
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(HOLDER_TIMEOUT_S)
        with theirs:
            self._process = _spawn(module, theirs.fileno())
        threading.Thread(target=self._watch, name="ipc-holder", daemon=True).start()

    def allocate(self, size_bytes: int) -> str:
        """The handle of new memory, in hexadecimal. DeviceError."""
        return str(self._ask({"allocate": size_bytes})["handle"])

    def free(self, handle: str) -> None:
        """DeviceError when the holder does not answer."""
        self._ask({"free": handle})

    def close(self) -> None:
        """Ends it, and what it still holds."""
        self._closing = True
        self._channel.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            said: dict[str, Any] = json.loads(self._read_line())
        except (OSError, ValueError) as error:
            raise DeviceError(f"the holder of device memory does not answer: {error}") from error
        if "failure" in said:
            raise DeviceError(said["failure"])
        return said

    def _read_line(self) -> bytes:
        received = b""
        while not received.endswith(b"\n"):
            part = self._channel.recv(RECEIVE_BYTES)
            if not part:
                raise ConnectionError("it has ended")
            received += part
        return received

    def _watch(self) -> None:
        self._process.wait()
        if not self._closing:
            self._on_lost()


def write_handle(handle: str, size_bytes: int) -> int:
    """A descriptor of a memfd with what an importer needs."""
    fd = os.memfd_create("tandem-cuda-ipc", os.MFD_CLOEXEC)
    os.pwrite(fd, json.dumps({"handle": handle, "size_bytes": size_bytes}).encode(), 0)
    return fd


def _spawn(module: str, channel_fd: int) -> "subprocess.Popen[bytes]":
    safe_path = ["-P"] if sys.flags.safe_path else []
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, *safe_path, "-m", module, "--channel-fd", str(channel_fd)],
        stdin=subprocess.DEVNULL,
        pass_fds=[channel_fd],
    )

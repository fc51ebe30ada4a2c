"""The holder: a child of memd that owns device memory of the older kind, together with the context that this needs.

``python -m tandem.device.cuda.ipc_holder --channel-fd N``. Over N, one JSON object a line: ``{"allocate": SIZE}`` is
answered by ``{"handle": HEX}``, ``{"free": HEX}`` by ``{"freed": true}``, and either by ``{"failure": TEXT}``. It ends,
and its memory with it, when the other side closes.
"""

import argparse
import ctypes
import json
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tandem.device.cuda.driver import DriverApi, check, open_driver
from tandem.device.cuda.primary_context import PrimaryContext
from tandem.errors import DeviceError

HANDLE_BYTES = 64


class Holdings:
    """The allocations of this process."""

    def __init__(self, driver: DriverApi, ordinal: int = 0) -> None:
        """Makes a context. DeviceError."""
        self._driver = driver
        self._context = PrimaryContext(driver, ordinal)
        self._pointers: dict[str, Any] = {}  # by handle

    def allocate(self, size_bytes: int) -> str:
        """The handle of new memory, in hexadecimal. DeviceError."""
        driver = self._driver
        with self._context.current():
            pointer = check(driver, driver.cuMemAlloc(size_bytes), "cuMemAlloc")
            handle = check(driver, driver.cuIpcGetMemHandle(pointer), "cuIpcGetMemHandle")
        text = ctypes.string_at(handle.getPtr(), HANDLE_BYTES).hex()
        self._pointers[text] = pointer
        return text

    def free(self, handle: str) -> None:
        """DeviceError when nothing is held under `handle`."""
        if handle not in self._pointers:
            raise DeviceError(f"no memory is held under {handle[:16]}...")
        with self._context.current():
            check(self._driver, self._driver.cuMemFree(self._pointers.pop(handle)), "cuMemFree")


def answer(holdings: Holdings, request: dict[str, Any]) -> dict[str, Any]:
    """What to say to a request. DeviceError."""
    if "allocate" in request:
        return {"handle": holdings.allocate(int(request["allocate"]))}
    holdings.free(str(request["free"]))
    return {"freed": True}


def serve(channel: socket.socket, driver: Callable[[], DriverApi]) -> None:
    """Until the other side closes. Without a device every request is answered by the reason."""
    with suppress(ConnectionError), channel.makefile("rwb") as lines:
        holdings: Holdings | None = None
        for line in lines:
            try:
                holdings = holdings or Holdings(driver())
                said = answer(holdings, json.loads(line))
            except DeviceError as error:
                said = {"failure": str(error)}
            lines.write(json.dumps(said).encode() + b"\n")
            lines.flush()


def main(argv: Sequence[str], driver: Callable[[], DriverApi] = open_driver) -> int:
    """The exit status. Signals are memd's to handle: the memory goes when memd does, not before."""
    parser = argparse.ArgumentParser(prog="tandem.device.cuda.ipc_holder")
    parser.add_argument("--channel-fd", type=int, required=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=parser.parse_args(argv).channel_fd) as channel:
        serve(channel, driver)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

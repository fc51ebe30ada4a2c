"""Processes beside a section's: one that exports memory and ends, others that map it.

``python -m bench.gpu.children FD SIZE`` sends a descriptor over the socket FD, and waits for its end; the others answer
with one JSON object.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.gpu.record import Value


@dataclass(frozen=True, slots=True)
class ExportedBytes:
    """Memory of a process that has no context on the device."""

    fd: int
    size_bytes: int
    exporter: subprocess.Popen[bytes]

    @property
    def arguments(self) -> list[str]:
        """For `answer_of`."""
        return [str(self.fd), str(self.size_bytes)]

    def end_exporter(self) -> None:
        """From now on the descriptor alone keeps the memory."""
        self.exporter.kill()
        self.exporter.wait()


@contextlib.contextmanager
def exporting(size_bytes: int) -> Iterator[ExportedBytes]:
    """Memory from a process of its own, as memd's is."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), str(size_bytes)]
        exporter = subprocess.Popen(command, pass_fds=[theirs.fileno()])  # noqa: S603 - this module
        theirs.close()
        said, fds, _, _ = socket.recv_fds(ours, 100, 1)
        if not fds:
            raise RuntimeError(f"the exporter ended: {exporter.wait()}")
        try:
            yield ExportedBytes(fds[0], int(said), exporter)
        finally:
            exporter.kill()
            exporter.wait()
            os.close(fds[0])


def answer_of(arguments: Sequence[str], fd: int, module: str) -> dict[str, Value]:
    """What a process of its own found out. RuntimeError: it ended without an answer."""
    command = [sys.executable, "-m", module, *arguments]
    started_s = time.perf_counter()
    done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=False)  # noqa: S603 - this module
    if not done.stdout.strip():
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    answer: dict[str, Value] = json.loads(done.stdout.splitlines()[-1])
    return answer | {"process_s": time.perf_counter() - started_s}


def main(fd: str, size_bytes: str) -> None:
    """See the module."""
    from tandem.device.cuda.driver import open_driver
    from tandem.device.cuda.vmm_export import VmmExporter

    segment = VmmExporter(open_driver()).create("bench", int(size_bytes))
    with socket.socket(fileno=int(fd)) as channel:
        socket.send_fds(channel, [str(segment.size_bytes).encode()], [segment.fd])
        channel.recv(1)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Processes beside a section's: one that exports memory and ends, others that map it.

``python -m bench.gpu.children export FD SIZE`` sends a descriptor over the socket FD, and waits for its end;
``... fill|check FD SIZE`` map the memory, and answer with one JSON object.
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

SEVEN = 7


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
        command = [sys.executable, "-m", __name__, "export", str(theirs.fileno()), str(size_bytes)]
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


def answer_of(arguments: Sequence[str], fd: int, module: str = __name__) -> dict[str, Value]:
    """What a process of its own found out. RuntimeError: it ended without an answer."""
    command = [sys.executable, "-m", module, *arguments]
    started_s = time.perf_counter()
    done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=False)  # noqa: S603 - this module
    if not done.stdout.strip():
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    answer: dict[str, Value] = json.loads(done.stdout.splitlines()[-1])
    return answer | {"process_s": time.perf_counter() - started_s}


def _export(fd: int, size_bytes: int) -> None:
    from tandem.device.cuda.driver import open_driver
    from tandem.device.cuda.vmm_export import VmmExporter

    segment = VmmExporter(open_driver()).create("bench", size_bytes)
    with socket.socket(fileno=fd) as channel:
        socket.send_fds(channel, [str(segment.size_bytes).encode()], [segment.fd])
        channel.recv(1)


def _map(how: str, fd: int, size_bytes: int) -> dict[str, Value]:
    started_s = time.perf_counter()
    import torch

    from tandem.device.memory import SegmentKind
    from tandem.device.memory_backends import IMPORTERS, SegmentImporter
    from tandem.rpc.segments import ReceivedSegment

    torch.cuda.init()  # type: ignore[no-untyped-call]
    ready_s = time.perf_counter()
    segment = ReceivedSegment("bench", fd, size_bytes, SegmentKind.CUDA_VMM, sealed=False)
    mapped = SegmentImporter(IMPORTERS).map(segment, writable=how == "fill")
    values = mapped.tensor("int32", (size_bytes // 4,))
    if how == "fill":
        values.fill_(SEVEN)
    is_kept = bool((values == SEVEN).all())
    return {"start_s": ready_s - started_s, "map_s": time.perf_counter() - ready_s, "is_kept": is_kept}


def main(how: str, fd: str, size_bytes: str) -> None:
    """See the module."""
    if how == "export":
        _export(int(fd), int(size_bytes))
    else:
        sys.stdout.write(json.dumps(_map(how, int(fd), int(size_bytes))) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

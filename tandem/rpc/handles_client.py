"""Receives memd's segments as file descriptors over its unix socket."""

import asyncio
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tandem.errors import DeviceError, NotReadyError

TIMEOUT_S = 5.0
MAX_FDS = 16
RECEIVE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class SegmentHandle:
    """A segment's descriptor in this process, owned by whoever received it."""

    name: str
    fd: int
    size_bytes: int


async def receive_segments(path: str, holder_id: int) -> Mapping[str, SegmentHandle]:
    """The segments that memd exports to an attached holder, by name.

    NotReadyError when memd does not answer, or not to this holder; DeviceError when the answer makes no sense.
    """
    return await asyncio.get_running_loop().run_in_executor(None, _receive, path, holder_id)


def close_segments(segments: Iterable[SegmentHandle]) -> None:
    """Closes the descriptors; what is mapped stays mapped."""
    for segment in segments:
        os.close(segment.fd)


def _receive(path: str, holder_id: int) -> Mapping[str, SegmentHandle]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(path)
            connection.sendall(json.dumps({"holder_id": holder_id}).encode() + b"\n")
            answer, fds = _read_all(connection)
    except OSError as error:
        raise NotReadyError(f"{path}: memd does not hand its segments out: {error}") from error
    try:
        return _segments(answer, fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _read_all(connection: socket.socket) -> tuple[bytes, list[int]]:
    answer, fds = bytearray(), list[int]()
    while True:
        part, part_fds, _, _ = socket.recv_fds(connection, RECEIVE_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        fds += part_fds
        if not part:
            return bytes(answer), fds
        answer += part


def _segments(answer: bytes, fds: Sequence[int]) -> Mapping[str, SegmentHandle]:
    if not answer:
        raise NotReadyError("memd closed the handle socket without an answer")
    try:
        described = [(str(entry["name"]), int(entry["size_bytes"])) for entry in json.loads(answer)["segments"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"memd's description of its segments cannot be read: {error!r}") from error
    if len(described) != len(fds):
        raise DeviceError(f"memd describes {len(described)} segments and hands out {len(fds)} descriptors")
    return {name: SegmentHandle(name, fd, size) for (name, size), fd in zip(described, fds, strict=True)}

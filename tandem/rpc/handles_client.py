"""Receives memd's segments as file descriptors over its unix socket."""

import asyncio
import json
import os
import socket
from collections.abc import Mapping, Sequence

from tandem.errors import DeviceError, NotReadyError
from tandem.rpc.segments import ReceivedSegment, read_segments, receive

TIMEOUT_S = 5.0
RECEIVE_BYTES = 1 << 16
MAX_ANSWER_BYTES = 1 << 16


async def receive_segments(path: str, holder_id: int) -> Mapping[str, ReceivedSegment]:
    """The segments that memd exports to an attached holder, by name.

    NotReadyError when memd does not answer, or not to this holder; DeviceError when the answer makes no sense.
    """
    return await asyncio.get_running_loop().run_in_executor(None, _receive, path, holder_id)


def _receive(path: str, holder_id: int) -> Mapping[str, ReceivedSegment]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(path)
            connection.sendall(json.dumps({"holder_id": holder_id}).encode() + b"\n")
            return _read_segments(connection)
    except OSError as error:
        raise NotReadyError(f"{path}: memd does not hand its segments out: {error}") from error


def _read_segments(connection: socket.socket) -> Mapping[str, ReceivedSegment]:
    fds = list[int]()
    try:
        return _segments(_read_all(connection, fds), fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _read_all(connection: socket.socket, fds: list[int]) -> bytes:
    """The whole answer; the descriptors that come beside it are added to `fds` as they come."""
    answer = bytearray()
    while True:
        part, part_fds = receive(connection, RECEIVE_BYTES)
        fds += part_fds
        if not part:
            return bytes(answer)
        answer += part
        if len(answer) > MAX_ANSWER_BYTES:
            raise DeviceError(f"memd's answer does not end within {MAX_ANSWER_BYTES} bytes")


def _segments(answer: bytes, fds: Sequence[int]) -> Mapping[str, ReceivedSegment]:
    if not answer:
        raise NotReadyError("memd closed the handle socket without an answer")
    return read_segments(answer, fds)

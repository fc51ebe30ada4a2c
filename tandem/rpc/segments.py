"""Segments on the wire: what is said of each, in JSON, beside its descriptor."""

import json
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tandem.device.memory import SegmentHandle, SegmentKind
from tandem.errors import DeviceError

MAX_FDS = 16
_FD = struct.Struct("i")


@dataclass(frozen=True, slots=True)
class ReceivedSegment:
    """A segment's descriptor in this process, owned by whoever received it."""

    name: str
    fd: int
    size_bytes: int
    kind: SegmentKind
    sealed: bool


def describe_segments(segments: Sequence[SegmentHandle]) -> dict[str, Any]:
    """What to send, in JSON; the descriptors go beside it in the same order."""
    return {"segments": [_describe(segment) for segment in segments]}


def read_segments(described: bytes, fds: Sequence[int]) -> Mapping[str, ReceivedSegment]:
    """By name, what `describe_segments` said of `fds`. DeviceError when that makes no sense; closes nothing."""
    try:
        entries = json.loads(described)["segments"]
        if len(entries) != len(fds):
            raise DeviceError(f"memd describes {len(entries)} segments and hands out {len(fds)} descriptors")
        received = [_read(entry, fd) for entry, fd in zip(entries, fds, strict=True)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DeviceError(f"memd's description of its segments cannot be read: {error!r}") from error
    named = {segment.name: segment for segment in received}
    if len(named) != len(received):
        raise DeviceError("memd describes two segments of one name")
    return named


def receive(connection: socket.socket, max_bytes: int) -> tuple[bytes, list[int]]:
    """What comes next, and the descriptors beside it, which no child process inherits; b"" at the end.

    OSError. In place of `socket.recv_fds`, which lets children inherit them: it drops its flags.
    """
    space = socket.CMSG_SPACE(MAX_FDS * _FD.size)
    part, ancillary, _, _ = connection.recvmsg(max_bytes, space, socket.MSG_CMSG_CLOEXEC)
    return part, [fd for _, _, data in ancillary for (fd,) in _FD.iter_unpack(data)]


def close_segments(segments: Iterable[ReceivedSegment]) -> None:
    """Closes the descriptors; what is mapped stays mapped."""
    for segment in segments:
        os.close(segment.fd)


def _describe(segment: SegmentHandle) -> dict[str, Any]:
    return {
        "name": segment.name,
        "size_bytes": segment.size_bytes,
        "kind": segment.kind.value,
        "sealed": segment.sealed,
    }


def _read(entry: Mapping[str, Any], fd: int) -> ReceivedSegment:
    name, size_bytes, sealed = entry["name"], entry["size_bytes"], entry["sealed"]
    if type(name) is not str or type(size_bytes) is not int or size_bytes < 1 or type(sealed) is not bool:
        raise TypeError(f"{name!r} of {size_bytes!r} bytes, sealed: {sealed!r}")
    return ReceivedSegment(name, fd, size_bytes, SegmentKind(entry["kind"]), sealed)

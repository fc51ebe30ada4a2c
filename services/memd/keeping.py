"""memd's side of the keeper: leaves its segments there, and takes them up again when it was started anew."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.memd.keeper import MAX_REQUEST_BYTES, NO_EPOCH, Verb
from tandem.device.memory import SegmentHandle
from tandem.errors import DeviceError, NotFoundError, NotReadyError
from tandem.rpc.segments import ReceivedSegment, describe_segments, read_segments, receive

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Deposit:
    """What a keeper holds, in descriptors that belong to whoever withdrew them; `epoch` 0: nothing."""

    epoch: int
    segments: Mapping[str, ReceivedSegment]


def deposit(path: Path, epoch: int, segments: Sequence[SegmentHandle]) -> None:
    """Leaves duplicates with the keeper in place of what it held; the caller keeps its own.

    NotFoundError: there is no keeper. NotReadyError: it does not answer, this time.
    """
    message = {"do": Verb.DEPOSIT, "epoch": epoch, **describe_segments(segments)}
    _ask(path, message, [segment.fd for segment in segments])


def held_epoch(path: Path) -> int:
    """Whose segments the keeper holds; 0: nobody's. NotFoundError, NotReadyError, DeviceError as of `withdraw`."""
    line, _ = _ask(path, {"do": Verb.LOOK, "epoch": NO_EPOCH}, [])
    return _epoch(line)


def withdraw(path: Path) -> Deposit:
    """Duplicates of what is held. As `deposit`; DeviceError: the answer makes no sense."""
    line, fds = _ask(path, {"do": Verb.WITHDRAW, "epoch": NO_EPOCH}, [])
    try:
        return Deposit(_epoch(line), read_segments(line, fds))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def forget(path: Path, epoch: int) -> None:
    """Has the keeper let an epoch's segments go, if those are what it holds. NotFoundError, NotReadyError."""
    _ask(path, {"do": Verb.FORGET, "epoch": epoch}, [])


def _ask(path: Path, message: Mapping[str, Any], fds: Sequence[int]) -> tuple[bytes, list[int]]:
    received, received_fds = bytearray(), list[int]()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(os.fspath(path))
            socket.send_fds(connection, [json.dumps(message).encode() + b"\n"], fds)
            while not received.endswith(b"\n"):
                part, part_fds = receive(connection, MAX_REQUEST_BYTES)
                received_fds += part_fds
                if not part:
                    raise ConnectionError("it closed the connection without an answer")
                received += part
    except OSError as error:
        for fd in received_fds:
            os.close(fd)
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            raise NotFoundError(f"{path}: there is no keeper") from error
        raise NotReadyError(f"{path}: the keeper does not answer: {error}") from error
    return bytes(received), received_fds


def _epoch(line: bytes) -> int:
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"the keeper's answer cannot be read: {error!r}") from error

"""Hands memd's segments out: file descriptors over a unix socket, to attached processes of the same user.

A client sends ``{"holder_id": N}`` and a line feed; it receives what `tandem.rpc.segments` says of the segments with
their descriptors beside it, and the connection is closed. Anything else closes it without an answer.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from tandem.device.memory import SegmentHandle
from tandem.rpc.segments import describe_segments
from tandem.rpc.sockets import SocketClaim, claim_socket

MAX_REQUEST_BYTES = 1024
REQUEST_TIMEOUT_S = 5.0
ACCEPT_RETRY_S = 0.1
PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

_log = structlog.get_logger()


class RefusedError(Exception):
    """This connection gets nothing; the others go on. Never leaves its server: this one, or the keeper."""


class HandleServer:
    """Listens between `start` and `close`."""

    def __init__(self, path: Path, segments: Sequence[SegmentHandle], admit: Callable[[int, int], bool]) -> None:
        """`admit` is told a holder and the pid that the kernel names (0: of another namespace)."""
        self._path = path
        self._segments = tuple(segments)
        self._admit = admit
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._claim: SocketClaim | None = None

    def start(self) -> None:
        """Binds and listens. ConfigError when a running process has the socket."""
        self._claim = claim_socket(self._path)
        self._listener.setblocking(False)
        self._listener.bind(os.fspath(self._path))
        self._path.chmod(0o600)
        self._listener.listen()
        self._spawn(self._accept())

    async def close(self) -> None:
        """Ends every connection and frees the path."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        if self._claim is not None:
            self._claim.release()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, or the peer gave up
                _log.warning("handles.not_accepted", error=str(error))
                await asyncio.sleep(ACCEPT_RETRY_S)
            else:
                self._spawn(self._serve(connection))

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                pid = refuse_others(connection)
                holder_id = await _read_holder_id(connection)
                self._hand_out(connection, holder_id, pid)
            except (RefusedError, OSError) as error:
                _log.warning("handles.refused", reason=str(error))

    def _hand_out(self, connection: socket.socket, holder_id: int, pid: int) -> None:
        if not self._admit(holder_id, pid):
            raise RefusedError(f"holder {holder_id} is not attached")
        answer = json.dumps(describe_segments(self._segments)).encode()
        socket.send_fds(connection, [answer], [segment.fd for segment in self._segments])
        _log.debug("handles.handed_out", holder_id=holder_id)


def refuse_others(connection: socket.socket) -> int:
    """The peer's pid. RefusedError unless it runs as this process's user."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
    pid, uid, _ = PEER_CREDENTIALS.unpack(raw)
    if uid != os.geteuid():
        raise RefusedError(f"the peer is user {uid}, not {os.geteuid()}")
    return int(pid)


async def _read_holder_id(connection: socket.socket) -> int:
    connection.setblocking(False)
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return parse_request(await _read_line(connection))
    except TimeoutError:
        raise RefusedError("no request came") from None


async def _read_line(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while b"\n" not in received:
        part = await loop.sock_recv(connection, MAX_REQUEST_BYTES)
        received += part
        if not part or len(received) > MAX_REQUEST_BYTES:
            raise RefusedError(f"no request in {len(received)} bytes")
    return bytes(received)


def parse_request(line: bytes) -> int:
    """The holder's id. RefusedError when that is not what `line` is."""
    with suppress(ValueError, RecursionError):
        request = json.loads(line)
        if isinstance(request, dict) and type(request.get("holder_id")) is int:
            return int(request["holder_id"])
    raise RefusedError(f"not a request: {line[:80]!r}")

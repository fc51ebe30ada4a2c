"""A way from clients to the gateway that can be cut, stalled and throttled: a small proxy of our own."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from pathlib import Path

CHUNK_BYTES = 4096
THROTTLED_BYTES_PER_S = 4000.0
_NO_LINGER = struct.pack("ii", 1, 0)


class Flow(Enum):
    """What a link does with what it is given."""

    OPEN = auto()
    SLOW = auto()
    STALLED = auto()
    CUT = auto()


class Link:
    """Listens on a port of the loopback interface, and passes bytes to and from a unix socket."""

    def __init__(self, target: Path, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._target = target
        self._sleep = sleep
        self._flow = Flow.OPEN
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """The address for clients."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def close(self) -> None:
        """Ends every connection; returns when all have."""
        self.set(Flow.CUT)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        await asyncio.gather(*self._serving)

    def set(self, flow: Flow) -> None:
        """From now on; CUT ends what is connected, too."""
        self._flow = flow
        if flow is Flow.STALLED:
            self._flowing.clear()
        else:
            self._flowing.set()
        if flow is Flow.CUT:
            for writer in self._writers:
                _reset(writer)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._flow is Flow.CUT:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._target))
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers -= both
            for each in both:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either end goes; then the other one goes, too."""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing.wait()
                if self._flow is Flow.SLOW:
                    await self._sleep(len(data) / THROTTLED_BYTES_PER_S)
                writer.write(data)
                await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection at once; over TCP the other side sees a reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()

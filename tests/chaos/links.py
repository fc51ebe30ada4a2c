"""Ways between processes that can be cut, stalled, slowed and frozen: small proxies of our own."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from pathlib import Path

CHUNK_BYTES = 4096
THROTTLED_BYTES_PER_S = 4000.0
LATE_S = 0.05
_NO_LINGER = struct.pack("ii", 1, 0)


class Flow(Enum):
    """What a link does with what it is given."""

    OPEN = auto()
    SLOW = auto()
    LATE = auto()
    STALLED = auto()
    CUT = auto()


class _Valve:
    """What the connections do that were made under it."""

    def __init__(self) -> None:
        self.flow = Flow.OPEN
        self._flowing = asyncio.Event()
        self._flowing.set()

    def turn(self, flow: Flow) -> None:
        """From now on."""
        self.flow = flow
        if flow is Flow.STALLED:
            self._flowing.clear()
        else:
            self._flowing.set()

    async def wait(self) -> None:
        """Until something may pass."""
        await self._flowing.wait()


class Link:
    """Passes bytes to and from a unix socket. It listens on one itself, at `path`, or on a port of the loopback."""

    def __init__(
        self, target: Path, path: Path | None = None, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.num_connections = 0  # so far
        self._target = target
        self._path = path
        self._sleep = sleep
        self._valve = _Valve()
        self._frozen: list[_Valve] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """The address for clients."""
        if self._path is not None:
            self._server = await asyncio.start_unix_server(self._accept, self._path)
            return f"unix:{self._path}"
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def close(self) -> None:
        """Ends every connection; returns when all have."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        for valve in self._frozen:
            valve.turn(Flow.CUT)
        self.set(Flow.CUT)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        await asyncio.gather(*self._serving)

    def set(self, flow: Flow) -> None:
        """From now on; CUT ends what is connected, too."""
        self._valve.turn(flow)
        if flow is Flow.CUT:
            for writer in self._writers:
                _reset(writer)

    def freeze(self) -> None:
        """No byte passes any more over what is connected now, and no end either; who connects anew is served."""
        self._valve.turn(Flow.STALLED)
        self._frozen.append(self._valve)
        self._valve = _Valve()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._valve.flow is Flow.CUT:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._target))
        except OSError:
            writer.transport.abort()
            return
        self.num_connections += 1
        both, valve = {writer, far_writer}, self._valve
        self._writers |= both
        try:
            await asyncio.gather(self._pump(valve, reader, far_writer), self._pump(valve, far_reader, writer))
        finally:
            self._writers -= both
            for each in both:
                each.transport.abort()

    async def _pump(self, valve: _Valve, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either end goes; then the other one goes, too."""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await valve.wait()
                await self._delay(valve.flow, len(data))
                writer.write(data)
                await writer.drain()
        await valve.wait()
        writer.close()

    async def _delay(self, flow: Flow, num_bytes: int) -> None:
        if flow is Flow.SLOW:
            await self._sleep(num_bytes / THROTTLED_BYTES_PER_S)
        elif flow is Flow.LATE:
            await self._sleep(LATE_S)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection at once; over TCP the other side sees a reset."""
    if not writer.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()

"""memd's side of loading: a child process opens the model and fills the weight segment, so memd needs no torch."""

import asyncio
import socket
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import structlog

from services.memd.loader_protocol import FILLED, LoadPlan, decode, decode_plan, encode
from tandem.config.settings import MemdConfig
from tandem.device.memory import ExportedSegment, SegmentKind
from tandem.errors import ModelError
from tandem.rpc.segments import describe_segments

RECEIVE_BYTES = 1 << 16
END_TIMEOUT_S = 60.0  # of a loader that has done its work; the machine may be busy

_log = structlog.get_logger()


class Loader:
    """The child process, ended with the ``async with`` block. First `plan`, then `fill`, each once."""

    def __init__(self, config: MemdConfig, kind: SegmentKind, module: str = "services.memd.load") -> None:
        """`kind`: of the segments that it is going to fill."""
        self._config = config
        self._kind = kind
        self._module = module
        self._received = bytearray()

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair()
        self._channel = ours
        self._channel.setblocking(False)
        with theirs:
            self._process = self._spawn(theirs.fileno())
        self._status = asyncio.ensure_future(asyncio.to_thread(self._process.wait))
        _log.info("model.loading", model=self._config.model, loader_pid=self._process.pid)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self._process.kill()
        await self._status

    async def plan(self) -> LoadPlan:
        """What was opened. ModelError, or a kind of it, when the model cannot be loaded."""
        return decode_plan(await self._read())

    async def fill(self, weights: ExportedSegment, kv: ExportedSegment) -> None:
        """Has the weights written and the KV zeroed, and waits for the child's end. ModelError."""
        segments = [weights, kv]
        with suppress(OSError):  # the child has ended: reading says how
            socket.send_fds(self._channel, [encode(describe_segments(segments))], [each.fd for each in segments])
        answer = await self._read()
        if answer != FILLED:
            raise ModelError(f"the loader answered {answer}")
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                status = await asyncio.shield(self._status)
        except TimeoutError:
            raise ModelError(f"the loader has filled the weights and not ended {END_TIMEOUT_S:g} s later") from None
        if status != 0:
            raise ModelError(f"the loader ended with status {status} after it had filled the weights")

    def _spawn(self, channel_fd: int) -> "subprocess.Popen[bytes]":
        """By `subprocess`, whose vfork runs no fork handlers: gRPC's, which the event loop's would, write to stderr."""
        safe_path = ["-P"] if sys.flags.safe_path else []
        config = self._config
        program = [sys.executable, *safe_path, "-m", self._module]
        model = ["--model", config.model, "--cache-dir", str(config.cache_dir)]
        weights = ["--dtype", config.dtype, "--quantization", config.quantization]
        segments = ["--memory-kind", self._kind.value]
        channel = ["--log-level", config.log_level, "--channel-fd", str(channel_fd)]
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*program, *model, *weights, *segments, *channel], stdin=subprocess.DEVNULL, pass_fds=[channel_fd]
        )

    async def _read(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            part = await self._receive()
            if not part:
                raise ModelError(f"the loader of {self._config.model} ended {await self._how_it_ended()}")
            self._received += part
        line, _, rest = self._received.partition(b"\n")
        self._received = bytearray(rest)
        return decode(bytes(line))

    async def _receive(self) -> bytes:
        """Nothing when the child has ended, even with something of ours unread."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._channel, RECEIVE_BYTES)
        except ConnectionResetError:
            return b""

    async def _how_it_ended(self) -> str:
        status = await asyncio.shield(self._status)
        return f"by signal {-status}" if status < 0 else f"with status {status}"

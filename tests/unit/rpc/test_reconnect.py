"""A peer that is slow to answer is connected to all the same."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.rpc import memd_client, reconnect
from tandem.rpc.server import ServiceHost

SLOW_S = 0.7  # beyond what lies between two attempts at first


class SlowRelay:
    """Accepts, and lets what comes of each connection through after a while."""

    def __init__(self, target: str) -> None:
        self.num_accepted = 0
        self._target = target

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_accepted += 1
        await asyncio.sleep(SLOW_S)
        back, forth = await asyncio.open_unix_connection(self._target)
        await asyncio.gather(self._pass(reader, forth), self._pass(back, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def slow_peer(folder: str) -> AsyncIterator[SlowRelay]:
    host = ServiceHost([], [f"unix:{folder}/it.sock"])
    await host.start()
    relay = SlowRelay(f"{folder}/it.sock")
    server = await asyncio.start_unix_server(relay.serve, f"{folder}/slow.sock")
    try:
        yield relay
    finally:
        server.close()
        await host.stop(0)


@pytest.mark.parametrize("options", [reconnect.CHANNEL_OPTIONS, memd_client.CHANNEL_OPTIONS])
async def test_a_peer_that_takes_its_time_is_waited_for(tmp_path, options):
    async with slow_peer(str(tmp_path)) as relay:
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/slow.sock", options=options) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=30)
        assert relay.num_accepted == 1

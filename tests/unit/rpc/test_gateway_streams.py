"""Streams of tokens, against a gateway that is a few lines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest

from tandem.errors import NotReadyError, QueueFullError
from tandem.rpc.gateway_streams import TokenPiece, TokenStreams
from tandem.rpc.status import abort
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc

FULL = 999  # as a prompt's first token
ENDLESS = 998
USAGE = pb.Usage(num_cached_tokens=16, queue_ms=2.5)


class Gateway(pb_grpc.GatewayServiceServicer):
    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.cancelled = asyncio.Event()

    async def Generate(self, request, context):  # noqa: N802
        self.requests.append(request)
        if request.token_ids.ids[0] == FULL:
            await abort(context, QueueFullError("full", 2.0))
        yield pb.GenerateResponse(token_ids=[1])
        try:
            while request.token_ids.ids[0] == ENDLESS:
                await asyncio.sleep(60)
        finally:
            self.cancelled.set()
        yield pb.GenerateResponse(token_ids=[2, 3], finish_reason=2, usage=USAGE)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[tuple[Gateway, TokenStreams]]:
    server, servicer = grpc.aio.server(), Gateway()
    pb_grpc.add_GatewayServiceServicer_to_server(servicer, server)
    address = f"unix:{tmp_path}/g.sock"
    server.add_insecure_port(address)
    await server.start()
    streams = TokenStreams(address)
    yield servicer, streams
    await streams.close()
    await server.stop(0)


async def test_pieces_come_as_they_are_sent(gateway):
    servicer, streams = gateway
    pieces = [piece async for piece in streams.generate([5, 6], 3)]
    assert pieces == [TokenPiece((1,), None), TokenPiece((2, 3), 16, 2.5)]
    (request,) = servicer.requests
    assert list(request.token_ids.ids) == [5, 6]
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.ignore_eos) == (3, 0.0, True)
    assert request.sampling.HasField("temperature")


async def test_a_refusal_is_tandems_error(gateway):
    with pytest.raises(QueueFullError) as caught:
        _ = [piece async for piece in gateway[1].generate([FULL], 3)]
    assert caught.value.retry_delay_s == 2.0


async def test_closing_a_stream_cancels_the_request(gateway):
    servicer, streams = gateway
    async with aclosing(streams.generate([ENDLESS], 3)) as pieces:
        assert await anext(pieces) == TokenPiece((1,), None)
    await asyncio.wait_for(servicer.cancelled.wait(), 10)


async def test_a_gateway_that_is_away_is_not_ready(tmp_path):
    streams = TokenStreams(f"unix:{tmp_path}/nobody.sock")
    with pytest.raises(NotReadyError):
        _ = [piece async for piece in streams.generate([1], 3)]
    await streams.close()

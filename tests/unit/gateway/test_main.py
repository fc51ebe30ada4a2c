"""The process: what it says while its peers are away, and how it ends."""

import asyncio
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway.main import serve
from services.gateway.service import SERVICE_NAME
from tandem.config.settings import GatewayConfig
from tandem.errors import ConfigError
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc


@pytest.fixture
def config(tmp_path, default_model_path):
    return GatewayConfig(model=str(default_model_path), run_dir=tmp_path, port=0)


async def test_without_peers_it_is_up_and_not_serving(config):
    stop = asyncio.Event()
    running = asyncio.ensure_future(serve(config, stop))
    async with grpc.aio.insecure_channel(config.socket("gateway")) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        asked = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
        answer = await health_pb2_grpc.HealthStub(channel).Check(asked, wait_for_ready=True)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GenerateOnce(pb.GenerateOnceRequest(request=pb.GenerateRequest(text="x")))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        tokens = await stub.Tokenize(pb.TokenizeRequest(text="x"))
        assert len(tokens.token_ids) == 1
    stop.set()
    assert await running == 0


async def test_a_port_in_use_stops_the_start(config):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            await serve(config.model_copy(update={"port": port}), asyncio.Event())

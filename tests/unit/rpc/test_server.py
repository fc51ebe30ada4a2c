"""`ServiceHost` through the clients of grpc's own health and reflection packages."""

import asyncio
import os
import socket
import stat

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tandem.errors import ConfigError
from tandem.rpc.listening import TcpPorts
from tandem.rpc.server import ServiceHost
from tandem.rpc.sockets import Entry
from tandem.rpc.stubs.controller.v1 import controller_pb2, controller_pb2_grpc
from tests.support.sockets import free_port, short_run_dir

NAME = "tandem.controller.v1.ControllerService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Echo(controller_pb2_grpc.ControllerServiceServicer):
    async def GetStatus(self, request, context):  # noqa: N802
        return controller_pb2.GetStatusResponse(reason="here")


@pytest.fixture
def run_dir():
    with short_run_dir() as path:
        yield path


@pytest.fixture
def address(run_dir):
    return f"unix:{run_dir}/controller.sock"


@pytest.fixture
async def host(address):
    host = make_host(address, "127.0.0.1:0")
    await host.start()
    yield host
    await host.stop(0)


def make_host(*addresses: str, **options: int | Entry) -> ServiceHost:
    sockets = [address for address in addresses if address.startswith("unix:")]
    ports = TcpPorts(tuple(address for address in addresses if address not in sockets))
    host = ServiceHost([NAME], sockets, ports=ports, **options)
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(Echo(), host.server)
    return host


async def reason_at(address: str) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        answer = await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=10)
    return answer.reason


async def test_it_serves_on_every_address(host, address):
    assert host.bound_port > 0
    assert await reason_at(address) == "here"
    assert await reason_at(f"127.0.0.1:{host.bound_port}") == "here"


async def test_health_follows_set_serving(host, address):
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
        seen = []
        for serving in (True, False, True):
            seen.append((await watch.read()).status)
            host.set_serving(serving)
        seen.append((await watch.read()).status)
        watch.cancel()
    assert seen == [NOT_SERVING, SERVING, NOT_SERVING, SERVING]


@pytest.mark.parametrize("name", ["", NAME])
async def test_health_has_the_whole_and_each_service(host, address, name):
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == NOT_SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=name))
        await watch.read()
        host.set_serving(True)
        await watch.read()
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        watch.cancel()


async def test_reflection_describes_the_service(host, address):
    def describe():
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            method = descriptor_pool.DescriptorPool(database).FindServiceByName(NAME).methods_by_name["SetSplit"]
            return set(database.get_services()), [field.name for field in method.input_type.fields]

    services, fields = await asyncio.to_thread(describe)
    assert {NAME, "grpc.health.v1.Health"} <= services
    assert fields == ["split"]


async def test_a_port_in_use_is_refused(address):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)) as raised:
            await make_host(address, f"127.0.0.1:{port}").start()
    assert raised.value.key == "port"
    await assert_can_be_served(address)


async def test_a_port_of_another_host_is_refused_too():
    port = free_port()
    first = make_host(f"127.0.0.1:{port}")
    await first.start()
    with pytest.raises(ConfigError, match=str(port)):
        await make_host(f"127.0.0.1:{port}").start()
    await first.stop(0)


async def test_a_socket_of_a_running_host_is_refused(host, address):
    with pytest.raises(ConfigError, match="in use") as raised:
        await make_host(address).start()
    assert raised.value.key == "run_dir"
    assert await reason_at(address) == "here"


async def test_a_socket_of_another_program_is_refused(run_dir, address):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{run_dir}/controller.sock")
        other.listen()
        with pytest.raises(ConfigError, match="in use"):
            await make_host(address).start()


async def test_a_stale_socket_is_replaced(run_dir, address):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{run_dir}/controller.sock")
    await assert_can_be_served(address)


async def test_a_file_that_is_no_socket_is_left_alone(run_dir, address):
    path = run_dir / "controller.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        await make_host(address).start()
    assert path.read_text() == "precious"


async def test_the_socket_is_removed_and_free_after_stop(run_dir, address):
    await assert_can_be_served(address)
    assert not (run_dir / "controller.sock").exists()
    await assert_can_be_served(address)


async def test_the_run_dir_is_made_private(run_dir):
    address = f"unix:{run_dir}/deep/controller.sock"
    await assert_can_be_served(address)
    assert stat.S_IMODE((run_dir / "deep").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
async def test_a_run_dir_of_somebody_else_is_refused(run_dir, address):
    os.chown(run_dir, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345") as raised:
        await make_host(address).start()
    assert raised.value.key == "run_dir"


async def test_a_run_dir_that_cannot_be_made(run_dir):
    (run_dir / "file").write_text("")
    with pytest.raises(ConfigError, match="run_dir"):
        await make_host(f"unix:{run_dir}/file/controller.sock").start()


async def test_messages_over_the_limit_are_refused(run_dir, address):
    host = make_host(address, max_message_bytes=1000)
    await host.start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(health_pb2.HealthCheckRequest(service="x" * 2000))
    await host.stop(0)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_stop_ends_streams_that_stay_open(host, address):
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        await asyncio.wait_for(host.stop(0.05), timeout=30)
        with pytest.raises(grpc.aio.AioRpcError):
            await watch.read()


async def test_a_successor_is_reached_from_the_moment_it_starts_and_streams_of_the_other_go_on(host, address, run_dir):
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == NOT_SERVING
        successor = make_host(address, entry=Entry.SUCCESSOR)
        await successor.start()
        successor.set_serving(True)
        host.set_serving(True)
        assert (await watch.read()).status == SERVING
        watch.cancel()
    settling = asyncio.ensure_future(successor.settled())
    assert await reason_at(address) == "here"
    assert not settling.done()
    await host.stop(0)
    await asyncio.wait_for(settling, 30)
    assert await reason_at(address) == "here"
    with pytest.raises(ConfigError, match="in use"):
        await make_host(address).start()
    await successor.stop(0)
    assert [path.name for path in run_dir.iterdir()] == ["controller.sock.lock"]


async def assert_can_be_served(address: str) -> None:
    host = make_host(address)
    await host.start()
    assert await reason_at(address) == "here"
    await host.stop(0)

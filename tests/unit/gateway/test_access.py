"""The port with TLS and keys, through the Python client: who gets in, and as whom."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway.listening import gateway_port
from services.gateway.service import SERVICE_NAME, add_to_server
from services.gateway.tenants import KeyedDirectory
from tandem.client import Access, AsyncClient, Client, RetryPolicy, TlsFiles
from tandem.config.settings import GatewayConfig
from tandem.config.tenants import key_line
from tandem.errors import ConfigError, NotReadyError, UnauthenticatedError
from tandem.rpc.cache_client import prompt_keys
from tandem.rpc.server import ServiceHost
from tandem.rpc.tls import channel_credentials
from tests.support.certificates import Certificate, make_certificate, needs_openssl
from tests.support.gateway_fakes import Rig, ScriptedPhases

pytestmark = needs_openssl
AT_ONCE = RetryPolicy(give_up_s=0)


@pytest.fixture(scope="module")
def server_certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture(scope="module")
def client_certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "client")


class Port:
    """A gateway that asks for certificates and keys."""

    def __init__(self, rig: Rig, address: str, believed: TlsFiles) -> None:
        self.rig = rig
        self.address = address
        self.believed = believed

    def access(self, key: str = "secret") -> Access:
        return Access(key, self.believed)


@pytest.fixture
async def port(tmp_path: Path, server_certificate: Certificate, client_certificate: Certificate) -> AsyncIterator[Port]:
    path = tmp_path / "tenants.toml"
    path.write_text(f'[acme]\nkeys = ["{key_line("secret")}"]\n')
    config = GatewayConfig(
        host="0.0.0.0",
        tls_cert=server_certificate.cert,
        tls_key=server_certificate.key,
        tls_client_ca=client_certificate.cert,
    )
    rig = await Rig(tenants=lambda clock: KeyedDirectory(path, bytes(32), clock)).up()
    phases = ScriptedPhases(rig, b"hello")
    phases.start()
    ports = replace(gateway_port(config), addresses=("127.0.0.1:0",))
    host = ServiceHost([SERVICE_NAME], [f"unix:{tmp_path}/g.sock"], ports=ports)
    add_to_server(rig.gateway.frontend, rig.gateway.status, host.server)
    await host.start()
    believed = TlsFiles(server_certificate.cert, client_certificate.cert, client_certificate.key)
    try:
        yield Port(rig, f"127.0.0.1:{host.bound_port}", believed)
    finally:
        await phases.stop()
        await host.stop(0)


async def test_a_key_tells_nothing_of_other_tenants_caches(port):
    own = await prompt_keys(port.address, (), "", port.access())
    assert await prompt_keys(port.address, (), "", port.access(), tenant="acme") == own
    with pytest.raises(UnauthenticatedError, match="of other tenants only"):
        await prompt_keys(port.address, (), "", port.access(), tenant="other")


async def test_a_key_and_a_certificate_open_every_call(port):
    async with AsyncClient(port.address, AT_ONCE, port.access()) as client:
        answers = await client.generate_once("hi", max_tokens=5)
        streamed = [piece async for piece in client.generate("hi", max_tokens=5)]
    assert answers[0].text == "hello"
    assert "".join(piece.text_delta for piece in streamed) == "hello"
    assert {spec.request_id for spec in port.rig.prefill.submitted} == {answers[0].request_id, streamed[0].request_id}


async def test_the_client_for_threads_shows_the_same(port):
    def ask() -> tuple[str, str]:
        with Client(port.address, AT_ONCE, port.access()) as client:
            streamed = "".join(piece.text_delta for piece in client.generate("hi", max_tokens=5))
            return client.generate_once("hi", max_tokens=5)[0].text, streamed

    assert await asyncio.to_thread(ask) == ("hello", "hello")


@pytest.mark.parametrize("key", ["", "wrong"])
async def test_without_a_tenants_key_every_call_is_refused(port, key):
    async with AsyncClient(port.address, AT_ONCE, port.access(key)) as client:
        for call in (client.tokenize("x"), client.model_info(), client.status(), client.abort("r")):
            with pytest.raises(UnauthenticatedError):
                await call
        with pytest.raises(UnauthenticatedError):
            await client.generate_once("hi")
    assert not port.rig.prefill.submitted


async def test_health_needs_no_key(port):
    async with grpc.aio.secure_channel(port.address, channel_credentials(port.believed)) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_without_a_certificate_nobody_is_heard(port):
    for tls in (TlsFiles(port.believed.ca), None):
        async with AsyncClient(port.address, AT_ONCE, Access("secret", tls)) as client:
            with pytest.raises(NotReadyError):
                await client.generate_once("hi", timeout_s=5)


async def test_the_socket_needs_neither(port, tmp_path):
    async with AsyncClient(f"unix:{tmp_path}/g.sock", AT_ONCE) as client:
        assert (await client.generate_once("hi", max_tokens=5))[0].text == "hello"


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="tls_ca"):
        Client("localhost:1", access=Access(tls=TlsFiles(ca=str(tmp_path / "none"))))
    with pytest.raises(ConfigError, match="tls_key: is missing"):
        Client("localhost:1", access=Access(tls=TlsFiles(cert="cert.pem")))


@pytest.mark.parametrize("key", ["secret\n", "sécret"])
def test_a_key_that_no_call_can_carry_is_refused(key):
    with pytest.raises(ConfigError, match="api_key") as caught:
        Access(key)
    assert key not in str(caught.value)


def test_a_key_is_in_no_representation():
    assert "secret" not in repr(Access("secret"))

"""Where a replica's services answer on TCP, and how that is protected."""

from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway.listening import replica_credentials
from tandem.config.settings import GatewayConfig, MemdConfig
from tandem.errors import ConfigError
from tandem.rpc.listening import replica_ports
from tandem.rpc.peer_channel import peer_channel
from tandem.rpc.server import ServiceHost
from tests.support.certificates import make_certificate, needs_openssl


def test_without_the_key_nothing_listens():
    assert replica_ports("memd", MemdConfig()).addresses == ()


def test_the_colocated_phases_have_two_ports():
    ports = replica_ports("colocated", MemdConfig(listen="127.0.0.1:7001"), 2)
    assert ports.addresses == ("127.0.0.1:7001", "127.0.0.1:7002")
    assert ports.credentials is None


@pytest.mark.parametrize("listen", ["7000", "host", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x"])
def test_what_is_no_address_is_named(listen):
    with pytest.raises(ConfigError, match=r"memd\.listen"):
        replica_ports("memd", MemdConfig(listen=listen))


def test_plain_text_for_others_must_be_asked_for():
    with pytest.raises(ConfigError, match=r"memd\.listen.*allow_plaintext"):
        replica_ports("memd", MemdConfig(listen="0.0.0.0:7000"))
    assert replica_ports("memd", MemdConfig(listen="0.0.0.0:7000", allow_plaintext=True)).addresses


def test_half_a_configuration_of_tls_is_refused():
    with pytest.raises(ConfigError, match=r"decode\.tls_key"):
        replica_ports("decode", MemdConfig(listen="0.0.0.0:7000", tls_cert="cert.pem"))
    with pytest.raises(ConfigError, match=r"gateway\.replica_tls_ca"):
        replica_credentials(GatewayConfig(replica_tls_cert="c", replica_tls_key="k"))
    with pytest.raises(ConfigError, match=r"gateway\.replica_tls_key"):
        replica_credentials(GatewayConfig(replica_tls_ca="a", replica_tls_cert="c"))


@needs_openssl
def test_files_that_do_not_fit_are_named_and_not_the_port(tmp_path: Path):
    service, other = make_certificate(tmp_path, "memd"), make_certificate(tmp_path, "other")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for cert, key in ((service.cert, other.key), (str(broken), service.key), (service.key, service.cert)):
        with pytest.raises(ConfigError, match=r"memd\.tls_cert: .* no certificate and its key"):
            replica_ports("memd", MemdConfig(listen="127.0.0.1:7000", tls_cert=cert, tls_key=key))
    for authority in (str(broken), service.key):
        files = {"tls_cert": service.cert, "tls_key": service.key, "tls_client_ca": authority}
        with pytest.raises(ConfigError, match=r"memd\.tls_client_ca: .* no certificate"):
            replica_ports("memd", MemdConfig(listen="127.0.0.1:7000", **files))
        with pytest.raises(ConfigError, match=r"gateway\.replica_tls_ca: .* no certificate"):
            replica_credentials(GatewayConfig(replica_tls_ca=authority))
    pair = {"replica_tls_cert": service.cert, "replica_tls_key": other.key}
    with pytest.raises(ConfigError, match=r"gateway\.replica_tls_cert: .* no certificate and its key"):
        replica_credentials(GatewayConfig(replica_tls_ca=service.cert, **pair))


@needs_openssl
async def test_only_who_shows_a_certificate_reaches_a_port_with_tls(tmp_path: Path):
    service, gateway = make_certificate(tmp_path, "memd"), make_certificate(tmp_path, "gateway")
    config = MemdConfig(listen="0.0.0.0:7000", tls_cert=service.cert, tls_key=service.key, tls_client_ca=gateway.cert)
    ports = replace(replica_ports("memd", config), addresses=("127.0.0.1:0",))
    host = ServiceHost([], [f"unix:{tmp_path}/memd.sock"], ports=ports)
    await host.start()
    known = GatewayConfig(replica_tls_ca=service.cert, replica_tls_cert=gateway.cert, replica_tls_key=gateway.key)
    nobody = GatewayConfig(replica_tls_ca=service.cert)
    try:
        assert await answers(f"127.0.0.1:{host.bound_port}", known)
        assert not await answers(f"127.0.0.1:{host.bound_port}", nobody)
        assert not await answers(f"127.0.0.1:{host.bound_port}", GatewayConfig())
        assert await answers(f"unix:{tmp_path}/memd.sock", known), "a socket has no TLS"
    finally:
        await host.stop(0)


async def answers(address: str, config: GatewayConfig) -> bool:
    async with peer_channel(address, (), replica_credentials(config)) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False
    return True

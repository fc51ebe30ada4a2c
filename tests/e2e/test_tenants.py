"""Tenants of one real deployment: nobody's hits are another's, and the cache outlives the gateway."""

import random
import socket
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from tandem.cli.main import main
from tandem.client import Access, Client, TlsFiles
from tandem.config.tenants import key_line
from tandem.errors import UnauthenticatedError
from tests.support.certificates import make_certificate, needs_openssl
from tests.support.deployment import POOL, Deployment, deployment

NAMES = ("one", "two", "red", "blue")
PROMPT = random.Random(1).choices(range(1, 200), k=100)


class Port:
    """The gateway's port with TLS, and a client for each tenant."""

    def __init__(self, system: Deployment, address: str, ca: str) -> None:
        self.system = system
        self.address = address
        self.tls = TlsFiles(ca)

    def num_cached(self, tenant: str, salt: str = "") -> int:
        with Client(self.address, access=Access(tenant, self.tls)) as client:
            (answer,) = client.generate_once(PROMPT, max_tokens=2, temperature=0.0, cache_salt=salt)
        return answer.usage.num_cached_tokens


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir) -> Iterator[Port]:
    folder = tmp_path_factory.mktemp("tenants")
    certificate = make_certificate(folder, "server")
    domains = {"red": "org:works", "blue": "org:works"}
    tables = [f'[{name}]\nkeys = ["{key_line(name)}"]\ndomain = "{domains.get(name, "private")}"' for name in NAMES]
    (folder / "tenants.toml").write_text("\n".join(tables))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    gateway = {
        "port": number,
        "api-keys": folder / "tenants.toml",
        "tls-cert": certificate.cert,
        "tls-key": certificate.key,
    }
    with deployment(str(tiny_model_dir("llama")), {**POOL, "gateway": gateway}) as system:
        yield Port(system, f"localhost:{number}", certificate.cert)


@needs_openssl
def test_hits_are_a_domains_own_and_outlive_the_gateway(port: Port) -> None:
    assert [port.num_cached(tenant) for tenant in NAMES] == [0, 0, 0, 96]
    assert [port.num_cached(tenant) for tenant in NAMES] == [96] * 4
    with pytest.raises(UnauthenticatedError):
        port.num_cached("nobody")
    port.system.kill("gateway")
    port.system.revive()
    assert [port.num_cached(tenant) for tenant in NAMES] == [96] * 4
    assert key_line("one") not in port.system.log("gateway")
    assert (port.system.run_dir / "cache.secret").stat().st_mode & 0o777 == 0o600


@needs_openssl
def test_what_a_tenant_has_left_is_deleted_by_its_name_whatever_the_salts(port: Port) -> None:
    places = [("one", ""), ("one", "x"), ("two", "")]
    for tenant, salt in places:
        port.num_cached(tenant, salt)
    removed = CliRunner().invoke(main, ["cache", "rm", "--tenant", "one", "--run-dir", str(port.system.run_dir)])
    assert removed.exit_code == 0, removed.output
    assert removed.output == "one: 12 blocks are free\n"
    assert [port.num_cached(tenant, salt) for tenant, salt in places] == [0, 0, 96]

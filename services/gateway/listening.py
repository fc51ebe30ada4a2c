"""How the gateway's port is open, and to whom."""

import ipaddress
from pathlib import Path

import grpc

from services.gateway.secret_file import server_secret
from services.gateway.tenants import KeyedDirectory, OpenDirectory, TenantDirectory
from tandem.clock import Clock
from tandem.config.settings import GatewayConfig
from tandem.errors import ConfigError
from tandem.rpc.tls import ServerFiles, server_credentials


def port_credentials(config: GatewayConfig) -> grpc.ServerCredentials | None:
    """None: plain text. ConfigError for that on an address that others reach, unless it is asked for."""
    if config.tls_cert or config.tls_key or config.tls_client_ca:
        for name in ("tls_cert", "tls_key"):
            if not getattr(config, name):
                raise ConfigError(f"gateway.{name}", "is missing: TLS takes a certificate and its key")
        return server_credentials(ServerFiles(config.tls_cert, config.tls_key, config.tls_client_ca))
    if not config.allow_plaintext and not is_loopback(config.host):
        problem = f"{config.host} is reached from elsewhere, and without TLS whoever sits between reads along"
        raise ConfigError("gateway.host", f"{problem}; set tls_cert and tls_key, or allow_plaintext = true")
    return None


def directory(config: GatewayConfig, clock: Clock) -> TenantDirectory:
    """Who may call. ConfigError: a file of tenants that is wrong, or a secret that is none."""
    if not config.api_keys:
        return OpenDirectory()
    return KeyedDirectory(Path(config.api_keys), server_secret(config.run_dir), clock)


def is_loopback(host: str) -> bool:
    """Whether nobody elsewhere reaches it. Names other than localhost may be anybody's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

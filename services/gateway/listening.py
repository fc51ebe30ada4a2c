"""How the gateway's port is open, and to whom."""

from pathlib import Path

import grpc

from services.gateway.secret_file import server_secret
from services.gateway.tenants import KeyedDirectory, OpenDirectory, TenantDirectory
from tandem.clock import Clock
from tandem.config.settings import GatewayConfig
from tandem.errors import ConfigError
from tandem.rpc.listening import TcpPorts, port_credentials
from tandem.rpc.tls import TlsFiles, channel_credentials


def gateway_port(config: GatewayConfig) -> TcpPorts:
    """ConfigError, as of `port_credentials`."""
    credentials = port_credentials("gateway", "host", config.host, config)
    return TcpPorts((f"{config.host}:{config.port}",), credentials)


def replica_credentials(config: GatewayConfig) -> grpc.ChannelCredentials | None:
    """For replicas on TCP; None: plain text. ConfigError: a file cannot be read, or one is missing beside another."""
    files = TlsFiles(config.replica_tls_ca, config.replica_tls_cert, config.replica_tls_key)
    if files == TlsFiles():
        return None
    if not files.ca:
        raise ConfigError("gateway.replica_tls_ca", "is missing: it says which replicas the certificate is shown to")
    return channel_credentials(files, "gateway.replica_")


def directory(config: GatewayConfig, clock: Clock) -> TenantDirectory:
    """Who may call. ConfigError: a file of tenants that is wrong, or a secret that is none."""
    if not config.api_keys:
        return OpenDirectory()
    return KeyedDirectory(Path(config.api_keys), server_secret(config.run_dir), clock)

"""Addresses on TCP: how they are protected, and on which a replica's services answer beside their sockets."""

import ipaddress
from dataclasses import dataclass
from typing import Protocol

import grpc

from tandem.config.settings import ReplicaConfig
from tandem.errors import ConfigError
from tandem.rpc.tls import ServerFiles, server_credentials

MAX_PORT = 65535


class Protection(Protocol):
    """The settings of a service that say how its port is protected."""

    @property
    def allow_plaintext(self) -> bool:
        """Whether TLS may be missing where others reach it."""
        ...

    @property
    def tls_cert(self) -> str:
        """PEM file."""
        ...

    @property
    def tls_key(self) -> str:
        """PEM file."""
        ...

    @property
    def tls_client_ca(self) -> str:
        """PEM file."""
        ...


@dataclass(frozen=True, slots=True)
class TcpPorts:
    """Where a server listens on TCP, and how."""

    addresses: tuple[str, ...] = ()
    credentials: grpc.ServerCredentials | None = None  # None: plain text
    key: str = "port"  # the setting to blame when an address is in use
    are_shared: bool = False  # a process and its successor have them together for a while


def port_credentials(service: str, host_key: str, host: str, settings: Protection) -> grpc.ServerCredentials | None:
    """None: plain text. ConfigError for that on an address that others reach, unless it is asked for."""
    if settings.tls_cert or settings.tls_key or settings.tls_client_ca:
        for name in ("tls_cert", "tls_key"):
            if not getattr(settings, name):
                raise ConfigError(f"{service}.{name}", "is missing: TLS takes a certificate and its key")
        return server_credentials(ServerFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca), service)
    if not settings.allow_plaintext and not is_loopback(host):
        problem = f"{host} is reached from elsewhere, and without TLS whoever sits between reads along"
        raise ConfigError(f"{service}.{host_key}", f"{problem}; set tls_cert and tls_key, or allow_plaintext = true")
    return None


def replica_ports(service: str, config: ReplicaConfig, num_ports: int = 1, *, are_shared: bool = False) -> TcpPorts:
    """Those of the key `listen`, from its port on; none when it is empty. ConfigError."""
    if not config.listen:
        return TcpPorts()
    key = f"{service}.listen"
    host, port = split_address(config.listen, key, MAX_PORT + 1 - num_ports)
    addresses = tuple(f"{host}:{number}" for number in range(port, port + num_ports))
    return TcpPorts(addresses, port_credentials(service, "listen", host, config), key, are_shared)


def split_address(text: str, key: str, max_port: int = MAX_PORT) -> tuple[str, int]:
    """HOST:PORT. ConfigError names the key."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= max_port:
        raise ConfigError(key, f"{text!r} is not HOST:PORT with a port from 1 to {max_port}")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether nobody elsewhere reaches it. Names other than localhost may be anybody's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""Where the replicas are, by the key `replicas`. Pure."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from tandem.errors import ConfigError

DNS = "dns:"
MAX_PORT = 65535 - 3
_SERVICES = ("memd", "prefill", "decode", "controller")  # in the order of their ports


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """gRPC addresses of its services. The name is a run directory, or HOST:PORT of memd."""

    name: str
    memd: str
    prefill: str
    decode: str
    controller: str


@dataclass(frozen=True, slots=True)
class DnsEntry:
    """A host, each of whose addresses is a replica with memd on that port."""

    host: str
    port: int

    def at(self, address: str) -> ReplicaAddress:
        """The replica at one of the host's addresses."""
        return on_network(f"[{address}]" if ":" in address else address, self.port)


@dataclass(frozen=True, slots=True)
class ReplicaList:
    """As configured."""

    fixed: tuple[ReplicaAddress, ...]
    by_name: tuple[DnsEntry, ...] = ()


def in_directory(run_dir: str) -> ReplicaAddress:
    """By the sockets of a run directory of this machine."""
    return ReplicaAddress(run_dir, *(f"unix:{run_dir}/{service}.sock" for service in _SERVICES))


def on_network(host: str, port: int) -> ReplicaAddress:
    """memd at that port and the others on the next ones."""
    return ReplicaAddress(f"{host}:{port}", *(f"{host}:{port + number}" for number in range(len(_SERVICES))))


def read_replicas(text: str, run_dir: str) -> ReplicaList:
    """Of the key `replicas`; empty: that of the gateway's own run directory. ConfigError names the wrong entry."""
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not entries:
        return ReplicaList((in_directory(run_dir),))
    fixed = tuple(_read_fixed(entry) for entry in entries if not entry.startswith(DNS))
    by_name = tuple(_read_dns(entry) for entry in entries if entry.startswith(DNS))
    _check_unique([each.name for each in fixed])
    return ReplicaList(fixed, by_name)


def _read_fixed(entry: str) -> ReplicaAddress:
    if entry.startswith("/"):
        return in_directory(os.path.normpath(entry))
    return on_network(*_host_and_port(entry, entry))


def _read_dns(entry: str) -> DnsEntry:
    host, port = _host_and_port(entry.removeprefix(DNS), entry)
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise _wrong(entry, f"{host!r} is no host name") from error
    return DnsEntry(host, port)


def _host_and_port(text: str, entry: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= MAX_PORT:
        raise _wrong(entry, f"use an absolute path, HOST:PORT or {DNS}HOST:PORT, with a port from 1 to {MAX_PORT}")
    return host, int(port)


def _check_unique(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise _wrong(name, "name each replica once")


def _wrong(entry: str, remedy: str) -> ConfigError:
    return ConfigError("gateway.replicas", f"{entry!r} is wrong; {remedy}")

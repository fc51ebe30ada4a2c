"""Certificates and keys in PEM files, as gRPC wants them."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from tandem.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """A port's certificate chain and key; with `client_ca`, clients must show a certificate that it signed."""

    cert: str
    key: str
    client_ca: str = ""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Whom a client believes (empty: the machine's authorities), and what it shows to a server that asks."""

    ca: str = ""
    cert: str = ""
    key: str = ""


def server_credentials(files: ServerFiles) -> grpc.ServerCredentials:
    """ConfigError names the setting whose file cannot be read."""
    pair = (_pem("gateway.tls_key", files.key), _pem("gateway.tls_cert", files.cert))
    client_ca = _pem("gateway.tls_client_ca", files.client_ca) if files.client_ca else None
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """ConfigError names the option whose file cannot be read, or is missing beside another."""
    if bool(files.cert) != bool(files.key):
        raise ConfigError("tls_key" if files.cert else "tls_cert", "is missing: a certificate and its key go together")
    return grpc.ssl_channel_credentials(
        root_certificates=_pem("tls_ca", files.ca) if files.ca else None,
        private_key=_pem("tls_key", files.key) if files.key else None,
        certificate_chain=_pem("tls_cert", files.cert) if files.cert else None,
    )


def _pem(setting: str, path: str) -> bytes:
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(setting, f"cannot read {path}: {error.strerror}") from error
    if b"-----BEGIN " not in text:
        raise ConfigError(setting, f"{path} is not a PEM file")
    return text

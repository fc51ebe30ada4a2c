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


def server_credentials(files: ServerFiles, service: str = "gateway") -> grpc.ServerCredentials:
    """ConfigError names the setting of that service whose file cannot be read."""
    pair = (_pem(f"{service}.tls_key", files.key), _pem(f"{service}.tls_cert", files.cert))
    client_ca = _pem(f"{service}.tls_client_ca", files.client_ca) if files.client_ca else None
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)


def channel_credentials(files: TlsFiles, prefix: str = "") -> grpc.ChannelCredentials:
    """ConfigError names the option, behind the prefix, whose file cannot be read, or is missing beside another."""
    ca, cert, key = (f"{prefix}{name}" for name in ("tls_ca", "tls_cert", "tls_key"))
    if bool(files.cert) != bool(files.key):
        raise ConfigError(key if files.cert else cert, "is missing: a certificate and its key go together")
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(ca, files.ca) if files.ca else None,
        private_key=_pem(key, files.key) if files.key else None,
        certificate_chain=_pem(cert, files.cert) if files.cert else None,
    )


def _pem(setting: str, path: str) -> bytes:
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(setting, f"cannot read {path}: {error.strerror}") from error
    if b"-----BEGIN " not in text:
        raise ConfigError(setting, f"{path} is not a PEM file")
    return text

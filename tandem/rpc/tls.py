"""Certificates and keys in PEM files, as gRPC wants them."""

import ssl
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
    """ConfigError names the setting of that service whose file cannot be read, or holds something else."""
    pair = (_pem(f"{service}.tls_key", files.key), _pem(f"{service}.tls_cert", files.cert))
    _check_pair(f"{service}.tls_cert", files.cert, files.key)
    client_ca = _authorities(f"{service}.tls_client_ca", files.client_ca) if files.client_ca else None
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)


def channel_credentials(files: TlsFiles, prefix: str = "") -> grpc.ChannelCredentials:
    """ConfigError names the option, behind the prefix, whose file cannot be read, does not fit, or is missing."""
    ca, cert, key = (f"{prefix}{name}" for name in ("tls_ca", "tls_cert", "tls_key"))
    if bool(files.cert) != bool(files.key):
        raise ConfigError(key if files.cert else cert, "is missing: a certificate and its key go together")
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_authorities(ca, files.ca) if files.ca else None,
        private_key=_pem(key, files.key) if files.key else None,
        certificate_chain=_pem(cert, files.cert) if files.cert else None,
    )
    if files.cert:
        _check_pair(cert, files.cert, files.key)
    return credentials


def _check_pair(setting: str, cert: str, key: str) -> None:
    """gRPC itself would only not listen, or never connect."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # how strong they must be is gRPC's to say
    try:
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        raise ConfigError(setting, f"{cert} and {key} are no certificate and its key") from error


def _authorities(setting: str, path: str) -> bytes:
    text = _pem(setting, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError(setting, f"{path} holds no certificate that can be read") from error
    return text


def _pem(setting: str, path: str) -> bytes:
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(setting, f"cannot read {path}: {error.strerror}") from error
    if b"-----BEGIN " not in text:
        raise ConfigError(setting, f"{path} is not a PEM file")
    return text

"""Certificates for tests, made by the openssl command."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="the openssl command is not installed")


@dataclass(frozen=True)
class Certificate:
    """Signed by itself: whoever is to believe it has it as an authority."""

    cert: str
    key: str


def make_certificate(folder: Path, name: str) -> Certificate:
    """Of localhost and 127.0.0.1, for two days."""
    certificate = Certificate(str(folder / f"{name}.cert.pem"), str(folder / f"{name}.key.pem"))
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", certificate.key, "-out", certificate.cert]
    subprocess.run(["openssl", "req", "-x509", *kind, *names, *files], check=True, capture_output=True)
    return certificate

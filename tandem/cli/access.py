"""Options of the commands that talk to a gateway elsewhere: its API key, its certificates."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from tandem.client import Access, TlsFiles
from tandem.errors import ConfigError

_FILE = click.Path(path_type=Path)


def access_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--api-key-file`` and ``--tls-*``, as the argument `access`. Keys come from files: others see a command line."""

    @wraps(command)
    def with_access(
        *words: Any, api_key_file: Path | None, tls: bool, tls_ca: str, tls_cert: str, tls_key: str, **options: Any
    ) -> None:
        files = TlsFiles(tls_ca, tls_cert, tls_key)
        shown = files if tls or files != TlsFiles() else None
        command(*words, access=Access(_key(api_key_file), shown), **options)

    for option in (
        click.option("--tls-key", default="", help="PEM file of the private key of --tls-cert."),
        click.option("--tls-cert", default="", help="PEM file that is shown to a gateway that asks who calls."),
        click.option("--tls-ca", default="", help="PEM file of who signed the gateway's certificate."),
        click.option("--tls", is_flag=True, help="The gateway's port has TLS; implied by the other --tls options."),
        click.option("--api-key-file", type=_FILE, help="File that has an API key and nothing else."),
    ):
        with_access = option(with_access)
    return with_access


def _key(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--api-key-file", f"cannot read {path}: {error}") from error
    if not (key.isascii() and key.isprintable() and key):
        raise ConfigError("--api-key-file", f"{path} holds no key; put the key alone into it")
    return key

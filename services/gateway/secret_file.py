"""The server's secret, of which the salts of cached KV are derived: kept, so that what is cached outlives a gateway."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from tandem.errors import ConfigError
from tandem.rpc.sockets import make_run_dir

NAME = "cache.secret"
SECRET_BYTES = 32


def server_secret(run_dir: Path) -> bytes:
    """The run directory's, drawn at the first call. ConfigError when others could read it, or it is none.

    ConfigError also as of `make_run_dir`: nothing need have been there before.
    """
    make_run_dir(run_dir)
    path = run_dir / NAME
    with suppress(FileExistsError):
        _create(path)
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError("run_dir", f"{path} is not a file of this user alone; remove it, and cached KV is forgotten")
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise ConfigError("run_dir", f"{path} has {len(secret)} bytes and not {SECRET_BYTES}; remove it")
    return secret


def _create(path: Path) -> None:
    """Whole or not at all. FileExistsError when it is there."""
    if path.exists():
        raise FileExistsError(path)
    part = path.with_name(f"{NAME}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(SECRET_BYTES))
    try:
        path.hardlink_to(part)
    finally:
        part.unlink()

"""Whether a TCP port is to be had."""

import errno
import socket
from contextlib import closing

from tandem.errors import ConfigError


def bind_error(host: str, port: int) -> OSError | None:
    """What keeps a service from `host`:`port` now; None: nothing."""
    with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def check_free(host: str, port: int) -> None:
    """ConfigError when somebody listens there. What else may be wrong with the address the gateway itself says."""
    error = bind_error(host, port)
    if error is not None and error.errno == errno.EADDRINUSE:
        raise ConfigError("gateway.port", f"{host}:{port} is in use; `--port` takes another, or 0 for any that is free")

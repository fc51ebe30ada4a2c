"""Short folders for unix sockets, and ports that nobody listens on."""

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_run_dir() -> Iterator[Path]:
    """A run directory whose socket paths fit into 107 bytes, whatever the test is called; removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="tdm"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

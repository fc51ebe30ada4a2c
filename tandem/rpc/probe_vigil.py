"""A vigil over probes that are processes of their own: it is kept in a file between them."""

import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tandem.rpc.guard import end_hung, facts_of_listener, sight_of_status
from tandem.rpc.vigil import Vigil

ROUND_S = 10.0  # from one probe to the next, at most


def continue_vigil(socket_path: Path, service_name: str, status: str, limit_s: float) -> None:
    """After a probe; ends a service that hangs."""
    path = Path(tempfile.gettempdir()) / f"vigil.{service_name}.json"
    vigil, facts = _read(path), facts_of_listener(socket_path)
    silent_s = vigil.look(sight_of_status(status), facts, time.monotonic(), ROUND_S)
    if facts is not None and silent_s >= limit_s:
        end_hung(service_name, facts.pid, silent_s, os.environ)
    path.write_text(json.dumps(asdict(vigil)))


def _read(path: Path) -> Vigil:
    try:
        return Vigil(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return Vigil()

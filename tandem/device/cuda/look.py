"""Looks for the GPU in a process of its own: whether MPS serves a process is fixed when that first looks."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict

from tandem.device.cuda.gpu import GpuFacts, GpuSearch, find_gpu

TIMEOUT_S = 60.0


def look_from_child(environ: Mapping[str, str]) -> GpuSearch:
    """What a process that is started with `environ` finds."""
    command = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command, env=dict(environ), capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return GpuSearch(None, f"looking for a GPU failed: {error}")
    return GpuSearch(_facts(found["gpu"]) if found["gpu"] else None, found["reason"])


def _facts(found: dict[str, object]) -> GpuFacts:
    """JSON has no tuples."""
    return GpuFacts(**{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()})  # type: ignore[arg-type]


if __name__ == "__main__":
    json.dump(asdict(find_gpu()), sys.stdout)

"""Looks for the GPU in a process of its own: whether MPS serves a process is fixed when that first looks."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from tandem.device.cuda.driver import DriverApi, open_driver
from tandem.device.cuda.gpu import GpuFacts, GpuSearch, find_gpu
from tandem.device.cuda.primary_context import PrimaryContext
from tandem.errors import DeviceError, DeviceFaultError

TIMEOUT_S = 60.0
DEVICE_ORDINAL = 0
FREE = "free"


def look_from_child(environ: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> GpuSearch:
    """What a process that is started with `environ` finds; nothing, when that takes longer."""
    try:
        found = _answer(environ, timeout_s=timeout_s)
    except DeviceError as error:
        return GpuSearch(None, f"looking for a GPU failed: {error}")
    return GpuSearch(_facts(found["gpu"]) if found["gpu"] else None, found["reason"])


def free_bytes_from_child(environ: Mapping[str, str]) -> int:
    """Of the device's memory, as a process that is started with `environ` sees it, whose context has some of it.

    DeviceError.
    """
    return int(_answer(environ, FREE)["free_bytes"])


def free_memory(driver: DriverApi) -> dict[str, int]:
    """What `free_bytes_from_child` is told; makes this process's context. DeviceError."""
    return {"free_bytes": PrimaryContext(driver, DEVICE_ORDINAL).free_bytes()}


def look(open_the_driver: Callable[[], DriverApi] = open_driver) -> GpuSearch:
    """What `look_from_child` is told. A GPU that serves nobody now is none, with the reason."""
    try:
        return find_gpu(open_the_driver)
    except DeviceFaultError as error:
        return GpuSearch(None, str(error))


def _answer(environ: Mapping[str, str], *arguments: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Of this module in a process of its own. DeviceError."""
    command = [sys.executable, "-P", "-m", __name__, *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command, env=dict(environ), capture_output=True, text=True, check=True, timeout=timeout_s
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise DeviceError(str(error)) from error
    return answer


def _facts(found: dict[str, object]) -> GpuFacts:
    """JSON has no tuples."""
    return GpuFacts(**{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()})  # type: ignore[arg-type]


if __name__ == "__main__":
    json.dump(free_memory(open_driver()) if FREE in sys.argv[1:] else asdict(look()), sys.stdout)

"""What a section's process finds around it: the places of our programs, and MPS or none."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.sections import Section, Surroundings
from tandem.device.cuda.look import look_from_child
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY, MpsControl, MpsDirectories
from tandem.errors import DeviceError

ROOT = Path(__file__).parents[2]
NOWHERE = "/nonexistent"  # a pipe directory without a daemon
LOOK_TIMEOUT_S = 12.0  # of the section's own time, should the driver wait for a daemon that never serves
DRIVER_PROGRAMS = "/usr/local/nvidia/bin"  # where container runtimes put them, and a shell may not look


@dataclass(frozen=True, slots=True)
class SectionEnvironment:
    """Of a section's process. `why_no_mps`: empty where it has MPS or wants none."""

    environ: Mapping[str, str]
    why_no_mps: str = ""


@contextlib.contextmanager
def environment_of(section: Section, folder: Path, *, is_dry: bool) -> Iterator[SectionEnvironment]:
    """A daemon of its own, in `folder`, for a section that can use MPS; no section meets another's."""
    environ = _found_by_children(os.environ)
    alone = {**environ, ENV_PIPE_DIRECTORY: NOWHERE}
    if section.surroundings is Surroundings.PLAIN or is_dry:
        yield SectionEnvironment(alone)
        return
    control = MpsControl(MpsDirectories(folder / "pipe", folder / "log"), environ)
    client = {**environ, **control.directories.environment()}
    try:
        control.start()
    except DeviceError as error:
        yield SectionEnvironment(alone, str(error))
        return
    try:
        problem = _why_not_served(client)
        yield SectionEnvironment(alone, problem) if problem else SectionEnvironment(client)
    finally:
        with contextlib.suppress(DeviceError):
            control.stop()


def _found_by_children(environ: Mapping[str, str]) -> dict[str, str]:
    """With the places of this tree and of the driver's programs."""
    places = (("PYTHONPATH", str(ROOT), environ.get("PYTHONPATH")), ("PATH", environ.get("PATH"), DRIVER_PROGRAMS))
    return {**environ, **{name: os.pathsep.join(filter(None, paths)) for name, *paths in places}}


def _why_not_served(client: Mapping[str, str]) -> str:
    """A daemon alone is not enough; empty where it serves."""
    search = look_from_child(client, LOOK_TIMEOUT_S)
    if search.gpu is not None and search.gpu.has_mps:
        return ""
    return f"MPS: a daemon starts and serves nobody: {search.reason or 'attribute 133 is 0'}"

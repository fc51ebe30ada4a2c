"""``python -m kernels.native.build``: compiles the library where a C++ compiler is to be had, and says so where not.

Objects are linked with the OpenMP runtime that torch brings, and no other: two would each keep a pool of threads.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kernels.native.levels import LEVELS, SOURCES, Level, library_path

COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++20", "-O3", "-fopenmp", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
# GCC's own header defines "undefined" vectors by themselves, and warns of it.
NO_WARNINGS_OF_HEADERS = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")


class BuildError(Exception):
    """What kept the library from being built, in one line."""


def find_compiler(environ: Mapping[str, str]) -> list[str]:
    """``$CXX``, which may bring flags, or the first one on the path. BuildError."""
    if environ.get("CXX"):
        return environ["CXX"].split()
    for name in COMPILERS:
        if shutil.which(name, path=environ.get("PATH")):
            return [name]
    raise BuildError("no C++ compiler, so plain torch computes, more slowly; with one: python -m kernels.native.build")


def find_openmp() -> Path:
    """The runtime in torch's folder. BuildError."""
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    found = sorted(path for folder in folders or () for path in Path(folder, "lib").glob("libgomp*.so*"))
    if not found:
        raise BuildError("torch brings no libgomp")
    return found[0]


def build(level: Level, compiler: Sequence[str], openmp: Path) -> Path:
    """Compiles and links into `library_path`, replacing the level's other builds. BuildError."""
    target = library_path(level)
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = []
        for source in sorted(SOURCES.glob("*.cpp")):
            objects.append(str(Path(folder, f"{source.stem}.o")))
            flags = (*FLAGS, *NO_WARNINGS_OF_HEADERS, *level.compiler_flags)
            _call([*compiler, *flags, "-c", str(source), "-o", objects[-1]])
        linked = Path(folder, target.name)
        _call([*compiler, "-shared", "-o", str(linked), *objects, str(openmp)])
        for stale in target.parent.glob(f"tandem-{level.name}-*.so"):
            stale.unlink()
        linked.replace(target)
    return target


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise BuildError(f"{command[0]}: {next((line for line in reason if 'error' in line), reason[-1])}")


def main() -> int:
    """Every level, for what is built here may run elsewhere; always 0: without a library the torch kernels serve."""
    for level in LEVELS:
        print(f"native kernels, {level.name}: {_made(level)}")  # noqa: T201
    return 0


def _made(level: Level) -> str:
    """What came of it, in one line."""
    if library_path(level).exists():
        return f"{library_path(level).name} is there"
    try:
        return f"built {build(level, find_compiler(os.environ), find_openmp()).name}"
    except BuildError as error:
        return f"not built ({error})"


if __name__ == "__main__":
    sys.exit(main())

"""Prints what a pyproject.toml asks for, to build and to run, so that an image layer can hold it without the code.

usage: requirements.py PYPROJECT [EXTRA...]
"""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(pyproject: str, extras: Sequence[str]) -> list[str]:
    """The build backend, the run-time dependencies and those of the extras. KeyError: no such extra."""
    project = tomllib.loads(pyproject)
    optional = [each for extra in extras for each in project["project"]["optional-dependencies"][extra]]
    return [*project["build-system"]["requires"], *project["project"]["dependencies"], *optional]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2:])) + "\n")

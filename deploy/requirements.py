"""Prints what a pyproject.toml asks for, to build and to run, so that an image layer can hold it without the code."""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: str) -> list[str]:
    """The build backend and the run-time dependencies, without the extras."""
    project = tomllib.loads(pyproject)
    return [*project["build-system"]["requires"], *project["project"]["dependencies"]]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path(sys.argv[1]).read_text(encoding="utf-8"))) + "\n")

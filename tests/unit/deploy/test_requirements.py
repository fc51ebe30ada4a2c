"""What the image's dependency layer holds."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_it_prints_what_builds_and_runs_the_project_and_no_extra():
    command = [sys.executable, ROOT / "deploy/requirements.py", ROOT / "pyproject.toml"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(printed) == {*pyproject["build-system"]["requires"], *pyproject["project"]["dependencies"]}
    assert not set(printed) & set(pyproject["project"]["optional-dependencies"]["cuda"])


def test_it_prints_an_extra_that_is_asked_for():
    command = [sys.executable, ROOT / "deploy/requirements.py", ROOT / "pyproject.toml", "cuda"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(pyproject["project"]["optional-dependencies"]["cuda"]) <= set(printed)

"""`.ci/venv`, which `make` calls: the choice of an interpreter."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / ".ci" / "venv"
TOOLS = ("bash", "dirname", "grep")


@pytest.fixture
def machine(tmp_path):
    """Runs the script in a folder of its own, where only the given Pythons are to be found."""

    def run(**pythons: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "a folder #1"
        programs = tmp_path / "bin"
        (folder / ".ci").mkdir(parents=True)
        programs.mkdir()
        shutil.copy(SCRIPT, folder / ".ci" / "venv")
        for tool in TOOLS:
            (programs / tool).symlink_to(shutil.which(tool))
        for name, script in pythons.items():
            program = programs / name.replace("_", ".")
            program.write_text(f"#!{shutil.which('sh')}\n{script}\n")
            program.chmod(0o755)
        environment = {"PATH": str(programs), "TORCH_VERSION": "0.0.0"}
        return subprocess.run(
            [folder / ".ci" / "venv"], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def pretends(version: str) -> str:
    """A Python that says it is usable, prints its version, and fails at making a venv."""
    return f'case "$1" in -c) exit 0;; --version) echo {version};; *) echo "made by {version}"; exit 3;; esac'


def test_no_usable_python_is_said_with_the_remedy(machine):
    result = machine(python3="exit 127", python3_12="echo shim: not installed >&2; exit 127")
    assert result.returncode == 1
    assert "needs Python 3.11 or 3.12" in result.stderr
    assert "PYTHON=" in result.stderr


def test_a_shim_that_fails_is_passed_over(machine):
    result = machine(python3="exit 127", python3_11=pretends("3.11.9"), python3_12=pretends("3.12.1"))
    assert "made by 3.11.9" in result.stdout


def test_the_version_of_this_python_is_accepted(machine):
    result = machine(python3=f'case "$1" in -c) exec {shlex.quote(sys.executable)} "$@";; *) echo used; exit 3;; esac')
    assert "used" in result.stdout
    assert result.returncode == 3

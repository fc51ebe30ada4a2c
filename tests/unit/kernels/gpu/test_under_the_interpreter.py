"""Runs the checks of tests/gpu/kernels on this machine, in one process whose Triton interprets its kernels.

A process decides once, when it imports Triton, whether kernels are interpreted; the other tests here compile them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/kernels"]
    environ = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.fullmatch(r"\d+ passed.*", done.stdout.splitlines()[-1]), done.stdout[-2000:]

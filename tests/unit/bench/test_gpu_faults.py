"""The GPU benchmark's faults, over a torch that has no device: who is told what, and what is made of the answers."""

import json
import os
from pathlib import Path

import pytest

from bench.gpu.bench import Bench
from bench.gpu.parts import faults
from bench.gpu.surroundings import NOWHERE
from tandem.clock import MonotonicClock
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY

TORCH = """
import os
class Matrix:
    def __getitem__(self, index):
        raise RuntimeError("device-side assert triggered")
class cuda:
    @staticmethod
    def synchronize():
        time.sleep(0.01)
import time
ones = lambda *shape, device: Matrix()
mm = lambda left, right: None
tensor = lambda values, device: None
"""


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the section finds where nobody's fault reaches another, and there is no MPS."""
    (tmp_path / "torch.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv(ENV_PIPE_DIRECTORY, NOWHERE)
    clock = MonotonicClock()
    faults.faults(Bench(tmp_path / "v.json", clock, clock.now() + 1000, tmp_path, is_dry=False))
    values: dict[str, object] = json.loads((tmp_path / "v.json").read_text())
    return values


def test_a_peer_that_lives_on_says_so_after_an_assertion_and_after_a_kill(found: dict[str, object]) -> None:
    assert found == {
        "peer_after_assert_without_mps": "alive",
        "peer_after_kill_without_mps": "alive",
        "left_out": {"peer_after_assert_with_mps": "no MPS", "peer_after_kill_with_mps": "no MPS"},
    }

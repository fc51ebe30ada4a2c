"""The GPU benchmark's faults, over a torch that has no device: who is told what, and what is made of the answers."""

import json
import os
from pathlib import Path

import pytest

from bench.gpu.bench import Bench
from bench.gpu.parts import faults
from bench.gpu.surroundings import NOWHERE
from tandem.clock import MonotonicClock
from tandem.device.cuda.gpu import GpuFacts, GpuSearch
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


REFUSED = "def ones(*shape, device):\n    raise RuntimeError('MPS server is not ready')\n"
SERVED = GpuSearch(GpuFacts("H200", (13, 0), (9, 0), 132, 1 << 37, has_mps=True))


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the processes import in its place; there is no MPS."""
    path = tmp_path / "torch.py"
    path.write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv(ENV_PIPE_DIRECTORY, NOWHERE)
    return path


def found(folder: Path) -> dict[str, object]:
    """By the section, with time enough."""
    clock = MonotonicClock()
    faults.faults(Bench(folder / "v.json", clock, clock.now() + 1000, folder, is_dry=False))
    values: dict[str, object] = json.loads((folder / "v.json").read_text())
    return values


def test_a_peer_that_lives_on_says_so_after_an_assertion_and_after_a_kill(tmp_path: Path, torch: Path) -> None:
    assert found(tmp_path) == {
        "peer_after_assert_without_mps": "alive",
        "peer_after_kill_without_mps": "alive",
        "left_out": {"peer_after_assert_with_mps": "no MPS", "peer_after_kill_with_mps": "no MPS"},
    }


def test_processes_that_get_no_device_are_no_peers_and_end_nothing_else(tmp_path: Path, torch: Path) -> None:
    torch.write_text(TORCH + REFUSED)
    values = found(tmp_path)
    refused = "no fault: a process ended with 1 before it used the device"
    assert [values[f"peer_after_{fault}_without_mps"] for fault in faults.FAULTS] == [refused, refused]


def test_a_daemon_that_recovers_is_waited_for(tmp_path: Path, torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_PIPE_DIRECTORY, str(tmp_path))
    recovering = GpuSearch(None, "cuInit: CUDA_ERROR_MPS_SERVER_NOT_READY (807)")
    looks = iter([SERVED, recovering, recovering, SERVED])
    monkeypatch.setattr(faults, "look_from_child", lambda _: next(looks))
    values = found(tmp_path)
    assert values["peer_after_kill_with_mps"] == "alive"
    assert next(looks, None) is None

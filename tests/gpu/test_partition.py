"""Partitions on a real GPU: MPS of our own, two processes, and the SMs on which their work is seen."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.cli.sm_check import check_sms
from tandem.cli.supervision import child_environment
from tandem.device.cuda.gpu import ENV_PERCENTAGE, find_gpu
from tandem.device.cuda.look import look_from_child
from tandem.device.cuda.mps import CONTROL_PROGRAM, MpsControl, MpsDirectories
from tandem.types import Phase, Split

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_gpu().gpu is None, reason=f"needs an NVIDIA GPU: {find_gpu().reason}"),
]
needs_mps = pytest.mark.skipif(shutil.which(CONTROL_PROGRAM) is None, reason=f"needs {CONTROL_PROGRAM}")

ROOT = Path(__file__).parents[2]
SWITCHES = """
import os, time
from pathlib import Path
import torch
from tandem.device.partition_backends import PartitionSite, make_partition_backend
from tandem.types import Phase, Split
backend = make_partition_backend("mps-green", PartitionSite((Phase.DECODE,), Path("."), os.environ))
splits = [Split(50, 50), Split(30, 70)]
a = torch.ones(256, 256, device="cuda")
def step():
    for _ in range(10):
        torch.mm(a, a)
for split in splits:
    backend.apply(Phase.DECODE, split)
    step()
switch_s = []
for index in range(1000):
    torch.cuda.current_stream().synchronize()
    started_s = time.perf_counter()
    backend.apply(Phase.DECODE, splits[index % 2])
    switch_s.append(time.perf_counter() - started_s)
    step()
print("p99_us", round(sorted(switch_s)[990] * 1e6, 1))
"""
BUSY = """
import torch
from kernels.gpu.sm_probe import probe_sms
device = torch.device("cuda")
probe_sms(device, 1000)
print("busy", flush=True)
probe_sms(device, 600_000_000_000)
"""
PEER = """
import sys, time
import torch
a = torch.ones(512, 512, device="cuda")
print("ready", flush=True)
until_s = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until_s:
    torch.mm(a, a)
    torch.cuda.synchronize()
print("alive", flush=True)
"""


@pytest.fixture(scope="module")
def mps() -> Iterator[MpsControl]:
    """A daemon of our own, ended with the module."""
    with tempfile.TemporaryDirectory(prefix="mps") as name:
        directories = MpsDirectories(Path(name) / "pipe", Path(name) / "log")
        control = MpsControl(directories, os.environ)
        control.start()
        yield control
        control.stop()


@pytest.fixture
def environ(mps) -> dict[str, str]:
    """Of a client."""
    return {**child_environment(os.environ), **mps.directories.environment()}


def python(program: str, environ: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that is no log event."""
    while (line := process.stdout.readline()).startswith(("{", "20")):
        pass
    return line.strip()


@needs_mps
def test_attribute_133_tells_a_client_from_others(environ):
    assert look_from_child(environ).gpu.has_mps
    assert not look_from_child({**environ, "CUDA_MPS_PIPE_DIRECTORY": "/nonexistent"}).gpu.has_mps


@needs_mps
@pytest.mark.parametrize("split", [Split(50, 50), Split(12, 88), Split(70, 30)])
def test_two_phases_have_sms_of_their_own_and_run_at_once(environ, split, record_property):
    report = check_sms(split, environ)
    record_property("sms", {phase.value: sorted(use.sm_ids) for phase, use in report.uses.items()})
    record_property("quotas", {phase.value: quota for phase, quota in report.quotas.items()})
    assert report.faults == ()
    for phase in Phase:
        assert len(report.uses[phase].sm_ids) == report.quotas[phase]


@needs_mps
def test_the_whole_device_is_all_of_its_sms(environ):
    report = check_sms(Split(100, 100), environ)
    num_sms = look_from_child(environ).gpu.num_sms
    assert {len(use.sm_ids) for use in report.uses.values()} == {num_sms}


@needs_mps
def test_a_switch_takes_less_than_a_millisecond(environ, record_property):
    process = python(SWITCHES, environ)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    p99_us = float(out.split()[-1])
    record_property("switch_p99_us", p99_us)
    assert p99_us < 1000


@needs_mps
def test_a_percentage_caps_the_sms(environ):
    probe = "import torch\nfrom kernels.gpu.sm_probe import probe_sms\nfrom kernels.gpu.sm_use import sm_use\n"
    probe += "print(len(sm_use(probe_sms(torch.device('cuda'), 1_000_000)).sm_ids))"
    out, _ = python(probe, {**environ, ENV_PERCENTAGE: "40"}).communicate(timeout=120)
    num_sms = look_from_child(environ).gpu.num_sms
    assert int(out.split()[-1]) <= 0.4 * num_sms + 2


@needs_mps
def test_a_busy_client_is_ended_and_its_peer_lives(environ, mps):
    with python(BUSY, environ) as busy, python(PEER, environ, "4") as peer:
        assert read_line(busy) == "busy"
        assert read_line(peer) == "ready"
        time.sleep(1.0)
        assert mps.end_client(busy.pid)
        busy.kill()
        assert read_line(peer) == "alive"


def test_two_processes_take_turns_without_mps(tmp_path):
    """Equal shares of the time, whatever the length of a step: what each has is measured by its own turns."""
    program = """
import sys, time
from pathlib import Path
import torch
from tandem.clock import MonotonicClock
from tandem.device.timeshare.backend import Pauses, TimeshareBackend
from tandem.device.timeshare.seat import Seat
from tandem.device.whole import WholeDeviceBackend
from tandem.types import Phase, Split
phase, repeat = Phase(sys.argv[2]), int(sys.argv[3])
clock = MonotonicClock()
seat = Seat(Path(sys.argv[1]), phase, clock)
backend = TimeshareBackend(seat, torch.cuda.synchronize, clock, WholeDeviceBackend(), Pauses.BETWEEN_STEPS)
backend.apply(phase, Split(50, 50))
a = torch.ones(2048, 2048, device="cuda")
torch.mm(a, a)
print("ready", flush=True)
sys.stdin.readline()
had_s, until_s = 0.0, clock.now() + 3.0
while clock.now() < until_s:
    with backend.turn():
        started_s = clock.now()
        for _ in range(repeat):
            torch.mm(a, a)
        torch.cuda.synchronize()
        had_s += clock.now() - started_s
print(had_s)
"""
    environ = {**child_environment(os.environ), "CUDA_MPS_PIPE_DIRECTORY": "/nonexistent"}
    running = {
        phase: subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), phase, repeat],
            env=environ, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for phase, repeat in ((Phase.PREFILL, "100"), (Phase.DECODE, "5"))
    }  # fmt: skip
    assert [read_line(process) for process in running.values()] == ["ready", "ready"]
    had_s: dict[Phase, float] = {}
    threads = [
        threading.Thread(target=lambda p=phase, r=process: had_s.update({p: float(r.communicate("\n")[0])}))
        for phase, process in running.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert had_s[Phase.PREFILL] == pytest.approx(had_s[Phase.DECODE], rel=0.15)
    assert sum(had_s.values()) > 2.1

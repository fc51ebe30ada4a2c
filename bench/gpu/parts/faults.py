"""Whether a phase's fault reaches the other."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.gpu.bench import Bench
from bench.gpu.surroundings import NOWHERE
from tandem.device.cuda.look import look_from_child
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY

PROGRAM = """
import sys, time
import torch
print("imported", flush=True)
sys.stdin.readline()
a = torch.ones(512, 512, device="cuda")
torch.mm(a, a)
torch.cuda.synchronize()
print("ready", flush=True)
command = sys.stdin.readline().strip()
if command == "assert":
    a[torch.tensor([512], device="cuda")]
until_s = time.monotonic() + 1.0
while time.monotonic() < until_s:
    torch.mm(a, a)
    torch.cuda.synchronize()
print("alive", flush=True)
"""
FAULTS = ("assert", "kill")
FAULT_S = 4.0  # two contexts and a fault may well take
CHILD_S = 30.0
BUSY_S = 0.3  # how long both have computed when one is killed
LOOK_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Case:
    """Two processes that have imported torch and used no device yet, with that environment."""

    finding: str
    fault: str
    environ: Mapping[str, str]
    peer: subprocess.Popen[str]
    other: subprocess.Popen[str]


def faults(bench: Bench) -> None:
    """A device-side assertion, and a kill, beside another process: without MPS, then beside a client of one daemon."""
    bench.needs_gpu("faults")
    surroundings = {"without_mps": {**os.environ, ENV_PIPE_DIRECTORY: NOWHERE}, "with_mps": os.environ}
    bench.expect(f"peer_after_{fault}_{how}" for how in surroundings for fault in FAULTS)
    if os.environ[ENV_PIPE_DIRECTORY] == NOWHERE:
        del surroundings["with_mps"]
        for fault in FAULTS:
            bench.leave_out(f"peer_after_{fault}_with_mps", "no MPS")
    with contextlib.ExitStack() as opened:
        cases = [
            Case(
                f"peer_after_{fault}_{how}", fault, environ, *(opened.enter_context(_python(environ)) for _ in range(2))
            )
            for how, environ in surroundings.items()
            for fault in FAULTS
        ]
        for case in cases:
            _until_served(bench, case.environ)
            if bench.has_time(FAULT_S):
                bench.record(case.finding, _survival(case))


def _until_served(bench: Bench, environ: Mapping[str, str]) -> None:
    """A daemon refuses new clients while it recovers from the fault before. Returns also when the time is over."""
    if environ[ENV_PIPE_DIRECTORY] == NOWHERE:
        return
    while bench.has_time(FAULT_S) and not _is_served(environ):
        time.sleep(LOOK_AGAIN_S)


def _is_served(environ: Mapping[str, str]) -> bool:
    gpu = look_from_child(environ).gpu
    return gpu is not None and gpu.has_mps


def _survival(case: Case) -> str:
    """What became of the peer. Both are ended: a daemon takes no clients as long as those of a fault live."""
    try:
        return _peer_beside(case)
    finally:
        for process in (case.peer, case.other):
            process.kill()
            process.wait()


def _peer_beside(case: Case) -> str:
    for process in (case.peer, case.other):
        _line(process)
        _tell(process, "use the device")
    for process in (case.peer, case.other):
        if not _line(process):
            return f"no fault: a process ended with {process.wait(CHILD_S)} before it used the device"
    _tell(case.peer, "compute")
    _tell(case.other, case.fault)
    if case.fault == "kill":
        time.sleep(BUSY_S)
        case.other.kill()
    return _line(case.peer) or f"ended with {case.peer.wait(CHILD_S)}"


@contextlib.contextmanager
def _python(environ: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(  # noqa: S603 - the program above
        command, env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _tell(process: subprocess.Popen[str], command: str) -> None:
    assert process.stdin
    process.stdin.write(f"{command}\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()

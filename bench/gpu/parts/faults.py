"""Whether a phase's fault reaches the other."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

from bench.gpu.bench import Bench
from bench.gpu.surroundings import NOWHERE
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY

PROGRAM = """
import sys, time
import torch
a = torch.ones(512, 512, device="cuda")
torch.mm(a, a)
torch.cuda.synchronize()
print("ready", flush=True)
command = sys.stdin.readline().strip()
if command == "assert":
    a[torch.tensor([512], device="cuda")]
until_s = time.monotonic() + 2
while time.monotonic() < until_s:
    torch.mm(a, a)
    torch.cuda.synchronize()
print("alive", flush=True)
"""
FAULTS = ("assert", "kill")
FAULT_S = 8.0  # two processes and a fault may well take
CHILD_S = 30.0
BUSY_S = 0.5  # how long both have computed when one is killed


def faults(bench: Bench) -> None:
    """A device-side assertion, and a kill, beside another process: without MPS, then beside a client of one daemon."""
    bench.needs_gpu("faults")
    bench.expect(f"peer_after_{name}_{how}" for how in ("without_mps", "with_mps") for name in FAULTS)
    _survival(bench, {**os.environ, ENV_PIPE_DIRECTORY: NOWHERE}, "without_mps")
    if os.environ[ENV_PIPE_DIRECTORY] != NOWHERE:
        _survival(bench, os.environ, "with_mps")
        return
    for name in FAULTS:
        bench.leave_out(f"peer_after_{name}_with_mps", "no MPS")


def _survival(bench: Bench, environ: Mapping[str, str], how: str) -> None:
    for name in FAULTS:
        if not bench.has_time(FAULT_S):
            return
        with _python(PROGRAM, environ) as peer, _python(PROGRAM, environ) as other:
            for process in (peer, other):
                _line(process)
            _tell(peer, "compute")
            _tell(other, name)
            if name == "kill":
                time.sleep(BUSY_S)
                other.kill()
            said = _line(peer)
            bench.record(f"peer_after_{name}_{how}", said or f"ended with {peer.wait(CHILD_S)}")


@contextlib.contextmanager
def _python(program: str, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program]
    with subprocess.Popen(  # noqa: S603 - the programs above
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

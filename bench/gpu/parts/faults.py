"""Whether a phase's fault reaches the other, and whether a graph keeps to the SMs on which it was captured."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

from bench.gpu.bench import Bench
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
until_s = time.monotonic() + 3
while time.monotonic() < until_s:
    torch.mm(a, a)
    torch.cuda.synchronize()
print("alive", flush=True)
"""
CHILD_S = 30.0
BUSY_S = 0.5  # how long both have computed when one is killed


def with_mps(bench: Bench) -> None:
    """A device-side assertion, and a kill, beside a client of the same daemon."""
    bench.needs_gpu("faults")
    _survival(bench, os.environ)


def without_mps(bench: Bench) -> None:
    """Likewise, with no daemon."""
    bench.needs_gpu("faults")
    _survival(bench, {**os.environ, ENV_PIPE_DIRECTORY: "/nonexistent"})


def graph_keeps_its_sms(bench: Bench) -> None:
    """A probe, captured on a share's stream: replayed there, then replayed from the stream of another share."""
    bench.needs_gpu("green contexts")
    import torch

    from bench.gpu.load import share_backend, split_of
    from kernels.gpu.sm_probe import PROGRAMS_PER_SM, launch_probe
    from tandem.runner.cuda.graphs import StepStream, TorchGraphs
    from tandem.types import Phase

    stream = StepStream()
    backend = share_backend(bench, Phase.DECODE, stream, is_alone=True)
    graphs = TorchGraphs(bench.device, stream)
    num_sms = torch.cuda.get_device_properties(bench.device).multi_processor_count
    runs = torch.zeros(PROGRAMS_PER_SM * num_sms, 3, dtype=torch.int64, device=bench.device)
    torch.cuda.synchronize()
    backend.apply(Phase.DECODE, split_of(31))
    launch_probe(runs, 100_000)
    replay = graphs.capture(lambda: launch_probe(runs, 100_000))
    for name, percent in (("on_its_own_share", 31), ("from_a_wider_share", 88)):
        backend.apply(Phase.DECODE, split_of(percent))
        replay()
        graphs.wait()
        bench.record(name, {"quota": stream.num_sms or num_sms, "sms": len(set(runs[:, 0].tolist()))})


def _survival(bench: Bench, environ: Mapping[str, str]) -> None:
    for name in ("assert", "kill"):
        with _python(PROGRAM, environ) as peer, _python(PROGRAM, environ) as other:
            for process in (peer, other):
                _line(process)
            _tell(peer, "compute")
            _tell(other, name)
            if name == "kill":
                time.sleep(BUSY_S)
                other.kill()
            said = _line(peer)
            bench.record(f"peer_after_{name}", said or f"ended with {peer.wait(CHILD_S)}")


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

"""Finds out on which SMs a stream's programs really run."""

import torch
import triton
from triton import language as tl
from triton.language.extra import cuda

from kernels.gpu.sm_use import ProgramRun

PROGRAMS_PER_SM = 8  # so many that no SM which the stream may use stays idle


def probe_sms(device: torch.device, hold_ns: int) -> tuple[ProgramRun, ...]:
    """Runs on the current stream and waits for it. Each program holds its SM for `hold_ns`."""
    num_programs = PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count
    runs = torch.empty(num_programs, 3, dtype=torch.int64, device=device)
    launch_probe(runs, hold_ns)
    return tuple(ProgramRun(*run) for run in runs.tolist())


def launch_probe(runs: torch.Tensor, hold_ns: int) -> None:
    """One program a row of `runs`, ``[num_programs, 3]`` int64: SM, start and end in nanoseconds."""
    _probe[(len(runs),)](runs, hold_ns, num_warps=1)


@triton.jit(do_not_specialize=["hold_ns"])
def _probe(runs: tl.tensor, hold_ns: tl.tensor) -> None:
    started = cuda.globaltimer()
    now = started
    while now - started < hold_ns:
        now = cuda.globaltimer()
    run = runs + tl.program_id(0) * 3
    tl.store(run, cuda.smid().to(tl.int64))
    tl.store(run + 1, started)
    tl.store(run + 2, now)

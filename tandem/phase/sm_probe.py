"""Shows on which SMs a phase's work really runs: a program that takes a share as the phase would, and probes it.

``python -m tandem.phase.sm_probe PHASE PREFILL_PERCENT DECODE_PERCENT`` says ``ready``, waits for a line, and answers
with a JSON object: how many SMs it should have, those it ran on, and from when to when by the device's clock.
"""

import json
import os
import sys
from pathlib import Path

from tandem.device.cuda.step_stream import use_torch_stream
from tandem.device.partition_backends import PartitionSite, make_partition_backend
from tandem.types import Phase, Split

BACKEND = "mps-green"
WARM_HOLD_NS = 1_000
HOLD_NS = 50_000_000  # an SM holds its 8 programs at once: in less two processes might miss each other


class Quota:
    """Remembers how many SMs the stream in use may run on."""

    def __init__(self) -> None:
        self.num_sms = 0

    def use_stream(self, handle: int, num_sms: int) -> None:
        """See `UseStream`."""
        self.num_sms = num_sms
        use_torch_stream(handle, num_sms)


def main(argv: list[str]) -> int:
    """The exit status. DeviceError without MPS."""
    import torch

    from kernels.gpu.sm_probe import probe_sms
    from kernels.gpu.sm_use import sm_use

    phase, split = Phase(argv[0]), Split(int(argv[1]), int(argv[2]))
    quota, device = Quota(), torch.device("cuda")
    site = PartitionSite((phase,), Path.cwd(), os.environ, use_stream=quota.use_stream)
    make_partition_backend(BACKEND, site).apply(phase, split)
    probe_sms(device, WARM_HOLD_NS)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    use = sm_use(probe_sms(device, HOLD_NS))
    sm_ids = sorted(use.sm_ids)
    json.dump({"quota": quota.num_sms, "sm_ids": sm_ids, "from_ns": use.started_ns, "to_ns": use.ended_ns}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

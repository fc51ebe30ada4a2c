"""A phase's side of a segment on a real GPU: ``KIND FD SIZE read|write|overwrite``.

It says ``ready``, waits for a line, and then says in JSON what it saw. ``write`` fills it with sevens, ``overwrite``
tries so through a read-only mapping.
"""

import json
import sys
import time
from typing import Any

import torch

from tandem.device.cuda.driver import open_driver
from tandem.device.cuda.gpu import read_gpu
from tandem.device.cuda.primary_context import PrimaryContext
from tandem.device.memory import SegmentKind
from tandem.device.memory_backends import IMPORTERS, SegmentImporter
from tandem.rpc.segments import ReceivedSegment


def main(kind: str, fd: str, size_bytes: str, how: str) -> None:
    segment = ReceivedSegment("test", int(fd), int(size_bytes), SegmentKind(kind), sealed=False)
    torch.cuda.init()
    driver = open_driver()
    context = PrimaryContext(driver, 0)
    context.synchronize()  # it has what it takes of the device before anybody counts
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()  # its turn
    free_before = context.free_bytes()
    started_s = time.perf_counter()
    mapped = SegmentImporter(IMPORTERS).map(segment, writable=how == "write")
    values = mapped.tensor("int32", (segment.size_bytes // 4,))
    seen: dict[str, Any] = {
        "attach_s": time.perf_counter() - started_s,
        "error": "",
        "has_mps": read_gpu(driver).has_mps,
    }
    seen["taken_bytes"] = free_before - context.free_bytes()
    try:
        if how != "read":
            values.fill_(7)
        seen["ends"] = [int(values[0]), int(values[-1])]
        mapped.close()
    except Exception as error:
        seen["error"] = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()  # after a fault the process may not end as others do


if __name__ == "__main__":
    main(*sys.argv[1:])

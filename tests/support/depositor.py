"""A memd that deposits segments with a keeper and waits to be killed: ``KEEPER_SOCKET KIND``."""

import sys
import time
from pathlib import Path

from services.memd.keeping import deposit
from tandem.device.cpu.memory import MemfdExporter
from tandem.device.cuda.vmm_export import VmmExporter
from tandem.device.memory import SegmentKind
from tests.support.fake_cuda.host import fake_driver, importers_over

EPOCH = 11


def main(path: str, kind: str) -> None:
    exporter = MemfdExporter() if kind == SegmentKind.MEMFD else VmmExporter(fake_driver())
    segments = [exporter.create(name, 2 << 20) for name in ("weights", "kv")]
    for value, segment in enumerate(segments, start=1):
        mapped = importers_over(fake_driver())[segment.kind]().map(segment, writable=True)
        mapped.tensor("int32", (1,))[0] = value
        mapped.close()
    segments[0].seal()
    deposit(Path(path), EPOCH, segments)
    sys.stdout.write("deposited\n")
    sys.stdout.flush()
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])

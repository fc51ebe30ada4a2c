"""How long a process takes to map a segment as a phase does: ``python -m tandem.phase.attach_probe KIND FD SIZE``.

Says ``mapped`` at the first mapping, which is also that of a context where the memory is a device's, and then, as a
JSON object, how long a second one took.
"""

import json
import sys
import time
from collections.abc import Sequence

from tandem.device.memory import SegmentKind
from tandem.device.memory_backends import IMPORTERS, Importers, SegmentImporter
from tandem.rpc.segments import ReceivedSegment

MAPPED = "mapped"


def main(argv: Sequence[str], importers: Importers = IMPORTERS) -> int:
    """The exit status. DeviceError: the segment cannot be mapped."""
    kind, fd, size_bytes = SegmentKind(argv[0]), int(argv[1]), int(argv[2])
    segment = ReceivedSegment("probe", fd, size_bytes, kind, sealed=False)
    importer = SegmentImporter(importers)
    importer.map(segment, writable=False).close()
    sys.stdout.write(f"{MAPPED}\n")
    sys.stdout.flush()
    started_s = time.perf_counter()
    mapped = importer.map(segment, writable=False)
    map_s = time.perf_counter() - started_s
    mapped.close()
    json.dump({"map_s": map_s}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

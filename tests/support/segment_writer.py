"""Another process that maps a segment and writes four sevens: ``KIND FD SIZE writable|read-only``."""

import sys

from tandem.device.memory import SegmentKind
from tandem.rpc.segments import ReceivedSegment
from tests.support.fake_cuda.host import fake_driver, importers_over


def main(kind: str, fd: str, size_bytes: str, how: str) -> None:
    segment = ReceivedSegment("test", int(fd), int(size_bytes), SegmentKind(kind), sealed=False)
    mapped = importers_over(fake_driver())[segment.kind]().map(segment, writable=how == "writable")
    mapped.tensor("float32", (4,))[:] = 7.0
    mapped.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

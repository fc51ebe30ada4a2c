"""Has the memory for KV made before prompts need it: a page comes with its first use, and a prompt has thousands."""

import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from tandem.device.cpu.aligned_mapping import AlignedMapping, populate
from tandem.device.memory import SegmentHandle, SegmentKind

PART_BYTES = 16 << 20
REST_S = 0.05  # between two parts: what is served goes first
LOWEST_PRIORITY = 19

_log = structlog.get_logger()


@contextmanager
def touching(segment: SegmentHandle) -> Iterator[None]:
    """Meanwhile the segment is touched, where it is memory of the machine."""
    stop = threading.Event()
    if segment.kind is SegmentKind.MEMFD:
        threading.Thread(target=touch, args=(segment, stop), name="touch", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def touch(segment: SegmentHandle, stop: threading.Event, populate: Callable[[int, int], None] = populate) -> None:
    """All of a segment of the machine's memory, part by part until `stop`, on a thread of its own; its content stays.

    A kernel that cannot leaves it as it is: each page comes with its first use.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)  # of this thread alone
    mapping = AlignedMapping(segment.fd, segment.size_bytes, mmap.PROT_READ | mmap.PROT_WRITE)
    try:
        for start in range(0, segment.size_bytes, PART_BYTES):
            populate(mapping.address + start, min(PART_BYTES, segment.size_bytes - start))
            if stop.wait(REST_S):
                return
    except OSError as error:
        _log.info("kv.not_touched", error=str(error))
    else:
        _log.info("kv.touched", size_bytes=segment.size_bytes)
    finally:
        mapping.close()

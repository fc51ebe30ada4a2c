"""KV memory is there before prompts need it, and what is in it stays."""

import errno
import os
import threading
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from services.memd.touching import PART_BYTES, touch, touching
from tandem.device.cpu.memory import MemfdExporter, MemfdImporter, MemfdSegment

SIZE_BYTES = PART_BYTES + 12_288


@pytest.fixture
def segment() -> Iterator[MemfdSegment]:
    made = MemfdExporter().create("kv", SIZE_BYTES)
    yield made
    made.close()


def allocated_bytes(segment: MemfdSegment) -> int:
    return os.fstat(segment.fd).st_blocks * 512


def touch_on_a_thread(segment: MemfdSegment, stop: threading.Event, *populate) -> list[dict]:
    with capture_logs() as logs:
        thread = threading.Thread(target=touch, args=(segment, stop, *populate))
        thread.start()
        thread.join()
    return logs


def test_all_memory_is_made_and_what_is_in_it_stays(segment):
    content = MemfdImporter().map(segment, writable=True).tensor("uint8", (SIZE_BYTES,))
    content[5] = 7
    before = allocated_bytes(segment)
    (event,) = touch_on_a_thread(segment, threading.Event())
    assert before < SIZE_BYTES <= allocated_bytes(segment)
    assert (event["event"], event["size_bytes"]) == ("kv.touched", SIZE_BYTES)
    assert content[5] == 7
    assert content[-1] == 0


def test_it_ends_between_two_parts(segment):
    stop, parts = threading.Event(), []

    def populate(address: int, size_bytes: int) -> None:
        parts.append(size_bytes)
        stop.set()

    assert touch_on_a_thread(segment, stop, populate) == []
    assert parts == [PART_BYTES]


def test_a_kernel_that_cannot_is_told_and_no_more(segment):
    def refuse(address: int, size_bytes: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    (event,) = touch_on_a_thread(segment, threading.Event(), refuse)
    assert event["event"] == "kv.not_touched"
    assert "Invalid argument" in event["error"]


def test_memory_comes_while_others_go_on(segment):
    with touching(segment):
        for _ in range(1000):
            if allocated_bytes(segment) >= SIZE_BYTES:
                break
            threading.Event().wait(0.01)
    assert allocated_bytes(segment) >= SIZE_BYTES

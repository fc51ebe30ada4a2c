"""Mappings for huge pages, against what the kernel says of this process."""

import gc
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.memd.load import use_huge_pages
from tandem.device.cpu.aligned_mapping import HUGE_PAGE_BYTES, AlignedMapping, collapse
from tandem.device.cpu.memory import MemfdExporter, MemfdImporter, MemfdSegment

SIZE_BYTES = 2 * HUGE_PAGE_BYTES + 4096
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


@pytest.fixture
def segment() -> Iterator[MemfdSegment]:
    made = MemfdExporter().create("weights", SIZE_BYTES)
    yield made
    made.close()


def huge_kib(address: int) -> int:
    """Of the mapping that begins there, by huge pages."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    of_mapping = lines[next(i for i, line in enumerate(lines) if line.startswith(f"{address:x}-")) :]
    return int(next(line for line in of_mapping if line.startswith("ShmemPmdMapped")).split()[1])


def is_mapped(address: int) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = (line.split()[0].split("-") for line in lines)
    return any(int(first, 16) <= address < int(end, 16) for first, end in spans)


def test_every_mapping_begins_with_a_huge_page(segment: MemfdSegment) -> None:
    mapped = [MemfdImporter().map(segment, writable=writable) for writable in (True, False)]
    whole = [each.tensor("uint8", (SIZE_BYTES,)) for each in mapped]
    assert [tensor.data_ptr() % HUGE_PAGE_BYTES for tensor in whole] == [0, 0]
    whole[0][-1] = 7
    assert whole[1][-1] == 7


def test_what_is_closed_is_not_mapped_any_more(segment: MemfdSegment) -> None:
    mapping = AlignedMapping(segment.fd, SIZE_BYTES, READ_WRITE)
    assert is_mapped(mapping.address)
    mapping.close()
    assert not is_mapped(mapping.address)
    mapping.close()


def test_a_view_keeps_its_mapping(segment: MemfdSegment) -> None:
    whole = MemfdImporter().map(segment, writable=True).tensor("uint8", (SIZE_BYTES,))
    gc.collect()
    whole[0] = 3
    assert is_mapped(whole.data_ptr())


def test_a_refused_mapping_leaves_nothing_reserved(segment: MemfdSegment, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(AlignedMapping, "close", lambda self: closed.append(self.address))
    segment.seal()
    with pytest.raises(PermissionError):
        AlignedMapping(segment.fd, SIZE_BYTES, READ_WRITE)
    assert closed


def test_collapsed_memory_is_the_same_and_huge_to_all_who_map_it(segment: MemfdSegment) -> None:
    mapped = MemfdImporter().map(segment, writable=True)
    whole = mapped.tensor("uint8", (SIZE_BYTES,))
    whole[:] = 5
    try:
        collapse(whole.data_ptr(), SIZE_BYTES)
    except OSError as error:
        pytest.skip(f"this kernel does not collapse memfds: {error}")
    theirs = MemfdImporter().map(segment, writable=False).tensor("uint8", (SIZE_BYTES,))
    assert bool((theirs == 5).all())
    assert huge_kib(whole.data_ptr()) == 2 * HUGE_PAGE_BYTES >> 10
    assert huge_kib(theirs.data_ptr()) == 2 * HUGE_PAGE_BYTES >> 10


def test_what_is_no_whole_memory_page_is_refused(segment: MemfdSegment) -> None:
    mapping = AlignedMapping(segment.fd, SIZE_BYTES, READ_WRITE)
    with pytest.raises(OSError, match=os.strerror(22)):
        collapse(mapping.address + 1, SIZE_BYTES - HUGE_PAGE_BYTES)


def test_a_kernel_without_collapse_is_told_of_and_no_more(segment: MemfdSegment) -> None:
    mapped = MemfdImporter().map(segment, writable=True)
    mapped.tensor("uint8", (SIZE_BYTES,))[:] = 9

    def unknown(address: int, size_bytes: int) -> None:
        raise OSError(22, os.strerror(22))

    with capture_logs() as logs:
        use_huge_pages(mapped, unknown)
        use_huge_pages(mapped, lambda address, size_bytes: None)
    assert [entry["event"] for entry in logs] == ["weights.without_huge_pages", "weights.in_huge_pages"]
    assert logs[0]["error"] == str(OSError(22, os.strerror(22)))
    assert bool((mapped.tensor("uint8", (SIZE_BYTES,)) == 9).all())

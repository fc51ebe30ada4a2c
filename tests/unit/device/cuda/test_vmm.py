"""Exporting without a context, mapping at addresses of ours; over the fake driver."""

import gc
import os
from pathlib import Path

import pytest

from tandem.device.cuda.driver import check
from tandem.device.cuda.primary_context import PrimaryContext
from tandem.device.cuda.vmm_export import VmmExporter
from tandem.device.cuda.vmm_import import AddressRange, VmmImporter
from tandem.errors import DeviceError, DeviceFaultError
from tandem.rpc.segments import ReceivedSegment
from tests.support.fake_cuda.base import DeviceSpec
from tests.support.fake_cuda.host import fake_driver, host_bytes
from tests.support.fake_cuda.memory import GRANULARITY, POISON

MEMD_MAY_CALL = {
    "cuInit",
    "cuDeviceGet",
    "cuMemGetAllocationGranularity",
    "cuMemCreate",
    "cuMemExportToShareableHandle",
    "cuMemRelease",
}


def num_fds() -> int:
    gc.collect()  # what other tests have left closes now, not in between
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def exporter():
    return VmmExporter(fake_driver())


@pytest.fixture
def segment(exporter):
    made = exporter.create("weights", GRANULARITY)
    yield made
    made.close()


def test_the_exporter_calls_nothing_that_needs_a_context():
    driver = fake_driver()
    VmmExporter(driver).create("weights", 5).close()
    assert set(driver.base.calls) <= MEMD_MAY_CALL
    assert not driver.base.contexts


def test_a_size_is_rounded_up_to_the_granularity(exporter):
    for asked, had in ((1, 1), (GRANULARITY, 1), (GRANULARITY + 1, 2)):
        segment = exporter.create("kv", asked)
        assert segment.size_bytes == had * GRANULARITY
        segment.close()


def test_the_descriptor_alone_keeps_the_memory():
    driver = fake_driver()
    before = num_fds()
    segment = VmmExporter(driver).create("kv", GRANULARITY)
    assert driver.memory.leaks == {}
    assert num_fds() == before + 1
    assert not os.get_inheritable(segment.fd)
    assert driver.memory.owned_bytes == GRANULARITY
    segment.close()
    assert driver.memory.owned_bytes == 0
    assert num_fds() == before


def test_memory_that_is_not_there_is_refused_with_sizes_and_remedy():
    exporter = VmmExporter(fake_driver(DeviceSpec(memory_bytes=16 << 20)))
    with pytest.raises(DeviceError, match=r"segment kv needs 18 MiB.*OUT_OF_MEMORY.*or lower memd\.kv_bytes"):
        exporter.create("kv", (16 << 20) + 1)


def test_an_export_that_fails_leaves_nothing_behind(monkeypatch):
    driver = fake_driver()
    exporter = VmmExporter(driver)
    refused = (driver.CUresult.CUDA_ERROR_NOT_SUPPORTED, None)
    monkeypatch.setattr(driver.memory, "cuMemExportToShareableHandle", lambda *_: refused)
    with pytest.raises(DeviceError, match="NOT_SUPPORTED"):
        exporter.create("kv", GRANULARITY)
    assert driver.memory.leaks == {}


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(DeviceError, match="INVALID_DEVICE"):
        VmmExporter(fake_driver(), ordinal=1)


def test_what_is_mapped_is_gone_when_it_is_closed(segment):
    driver = fake_driver()
    before = num_fds()
    mapped = VmmImporter(driver, host_bytes).map(segment, writable=True)
    assert driver.memory.leaks == {"reservations": 1, "mappings": 1}
    mapped.close()
    assert driver.memory.leaks == {}
    assert num_fds() == before
    assert driver.base.calls.index("cuCtxSynchronize") < driver.base.calls.index("cuMemUnmap")


def test_mapping_leaves_the_threads_context_as_it_was(segment):
    driver = fake_driver()
    importer = VmmImporter(driver, host_bytes)
    importer.map(segment, writable=False).close()
    assert driver.base.current_context == 0


@pytest.mark.parametrize("call", ["cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"])
def test_a_mapping_that_fails_leaves_nothing_behind(segment, monkeypatch, call):
    driver = fake_driver()
    importer = VmmImporter(driver, host_bytes)
    refused = (driver.CUresult.CUDA_ERROR_NOT_PERMITTED, None)
    monkeypatch.setattr(driver.memory, call, lambda *_: refused)
    with pytest.raises(DeviceError, match=rf"{GRANULARITY} bytes cannot be mapped: {call}: CUDA_ERROR_NOT_PERMITTED"):
        importer.map(segment, writable=True)
    assert driver.memory.leaks == {}


def test_a_fault_is_told_from_a_refusal(segment):
    driver = fake_driver()
    importer = VmmImporter(driver, host_bytes)
    driver.base.sticky = driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DeviceFaultError, match="ILLEGAL_ADDRESS"):
        importer.map(segment, writable=False)
    with pytest.raises(DeviceFaultError, match="ILLEGAL_ADDRESS"):
        importer.free_bytes()


def test_a_size_that_is_no_multiple_of_the_granularity_cannot_be_mapped(segment):
    odd = ReceivedSegment("weights", segment.fd, GRANULARITY - 4096, segment.kind, sealed=False)
    with pytest.raises(DeviceError, match="INVALID_VALUE"):
        VmmImporter(fake_driver(), host_bytes).map(odd, writable=False)


def test_new_memory_holds_anything(segment):
    mapped = VmmImporter(fake_driver(), host_bytes).map(segment, writable=False)
    assert (mapped.tensor("uint8", (GRANULARITY,)) == POISON).all()
    mapped.close()


def test_an_address_stays_the_same_whatever_is_mapped_there(exporter):
    """So a captured graph, which has addresses in it, can be used again."""
    driver = fake_driver()
    place = AddressRange(driver, PrimaryContext(driver, 0), 0, GRANULARITY)
    view = host_bytes(place.address, GRANULARITY)
    posix = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    seen = []
    for value in (1, 2):
        segment = exporter.create("kv", GRANULARITY)
        memory = check(driver, driver.cuMemImportFromShareableHandle(segment.fd, posix), "import")
        place.map(memory, writable=True)
        seen.append((place.address, int(view[0])))
        view[0] = value
        place.unmap()
        driver.cuMemRelease(memory)
        segment.close()
    place.free()
    assert seen == [(place.address, POISON)] * 2
    assert driver.memory.leaks == {}


def test_free_memory_is_the_devices():
    driver = fake_driver(DeviceSpec(memory_bytes=10 * GRANULARITY))
    segment = VmmExporter(driver).create("kv", GRANULARITY)
    assert VmmImporter(driver, host_bytes).free_bytes() == 9 * GRANULARITY
    segment.close()

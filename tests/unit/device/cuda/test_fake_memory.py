"""The fake driver refuses what the real one's manual says it refuses: else what is tested over it shows nothing."""

import ctypes
import faulthandler
import os
import resource
from collections.abc import Callable

import pytest
from cuda.bindings import driver as real

from tandem.device.cuda.vmm_export import exportable_properties
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_cuda.base import DeviceSpec
from tests.support.fake_cuda.host import fake_driver
from tests.support.fake_cuda.memory import GRANULARITY

POSIX = real.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
READ = real.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READ
READ_WRITE = real.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
SEGMENTATION_FAULT = 11


def result(answer: tuple[object, ...]) -> str:
    return answer[0].name.removeprefix("CUDA_")


@pytest.fixture
def driver() -> FakeCuda:
    """With a context current, as in a phase."""
    made = fake_driver()
    made.cuCtxSetCurrent(made.cuDevicePrimaryCtxRetain(0)[1])
    return made


@pytest.fixture
def memory(driver):
    return driver.cuMemCreate(GRANULARITY, exportable_properties(driver, 0), 0)[1]


def access(flags: object) -> object:
    made = real.CUmemAccessDesc()
    made.location.type = real.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    made.flags = flags
    return made


def mapped_at(driver: FakeCuda, memory: object, flags: object) -> int:
    address = driver.cuMemAddressReserve(GRANULARITY, 0, 0, 0)[1]
    assert result(driver.cuMemMap(address, GRANULARITY, 0, memory, 0)) == "SUCCESS"
    assert result(driver.cuMemSetAccess(address, GRANULARITY, [access(flags)], 1)) == "SUCCESS"
    return int(address)


def signal_of(touch: Callable[[], object]) -> int:
    """What ends a process that does it; 0: nothing."""
    pid = os.fork()
    if not pid:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        touch()
        os._exit(0)
    return -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def write(address: int) -> int:
    return signal_of(lambda: ctypes.memset(address, 1, 1))


def read(address: int) -> int:
    return signal_of(lambda: ctypes.string_at(address, 1))


def test_nothing_works_before_it_is_initialised():
    driver = FakeCuda()
    assert result(driver.cuDeviceGet(0)) == "ERROR_NOT_INITIALIZED"
    assert result(driver.cuMemRelease(1)) == "ERROR_NOT_INITIALIZED"
    assert result(FakeCuda(DeviceSpec(num_devices=0)).cuInit(0)) == "ERROR_NO_DEVICE"


def test_what_needs_a_context_is_refused_without():
    driver = fake_driver()
    for call in (driver.cuMemGetInfo, driver.cuCtxSynchronize, lambda: driver.cuMemAlloc(1)):
        assert result(call()) == "ERROR_INVALID_CONTEXT"
    assert result(driver.cuMemMap(0, 0, 0, 0, 0)) == "ERROR_INVALID_CONTEXT"


def test_after_a_fault_every_call_says_so(driver):
    driver.base.sticky = real.CUresult.CUDA_ERROR_LAUNCH_FAILED
    assert {result(driver.cuCtxSynchronize()), result(driver.cuMemGetInfo())} == {"ERROR_LAUNCH_FAILED"}


@pytest.mark.parametrize("size", [0, 1, GRANULARITY + 4096])
def test_sizes_are_multiples_of_the_granularity(driver, size):
    assert result(driver.cuMemCreate(size, exportable_properties(driver, 0), 0)) == "ERROR_INVALID_VALUE"


def test_only_what_was_made_exportable_is_exported(driver):
    prop = exportable_properties(driver, 0)
    prop.requestedHandleTypes = real.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE
    memory = driver.cuMemCreate(GRANULARITY, prop, 0)[1]
    assert result(driver.cuMemExportToShareableHandle(memory, POSIX, 0)) == "ERROR_INVALID_VALUE"


def test_memory_is_counted_until_handle_and_mapping_are_gone(driver, memory):
    mapped = mapped_at(driver, memory, READ)
    assert driver.memory.owned_bytes == GRANULARITY
    driver.cuMemRelease(memory)
    assert driver.memory.owned_bytes == GRANULARITY
    driver.cuMemUnmap(mapped, GRANULARITY)
    assert driver.memory.owned_bytes == 0
    assert driver.memory.leaks == {"reservations": 1}


def test_more_than_the_device_has_is_refused():
    driver = fake_driver(DeviceSpec(memory_bytes=GRANULARITY))
    prop = exportable_properties(driver, 0)
    first = driver.cuMemCreate(GRANULARITY, prop, 0)[1]
    assert result(driver.cuMemCreate(GRANULARITY, prop, 0)) == "ERROR_OUT_OF_MEMORY"
    driver.cuMemRelease(first)
    assert result(driver.cuMemCreate(GRANULARITY, prop, 0)) == "SUCCESS"


def test_a_handle_is_released_once(driver, memory):
    assert result(driver.cuMemRelease(memory)) == "SUCCESS"
    assert result(driver.cuMemRelease(memory)) == "ERROR_INVALID_VALUE"


def test_mapping_keeps_to_offset_alignment_size_and_reservation(driver, memory):
    address = int(driver.cuMemAddressReserve(2 * GRANULARITY, 0, 0, 0)[1])
    refused = [
        (address, GRANULARITY, GRANULARITY),  # an offset
        (address + 4096, GRANULARITY, 0),  # not aligned
        (address, 2 * GRANULARITY, 0),  # more than the memory
        (address + 2 * GRANULARITY, GRANULARITY, 0),  # not reserved
    ]
    for place, size, offset in refused:
        assert result(driver.cuMemMap(place, size, offset, memory, 0)) == "ERROR_INVALID_VALUE"
    assert result(driver.cuMemMap(address, GRANULARITY, 0, memory, 0)) == "SUCCESS"
    assert result(driver.cuMemMap(address, GRANULARITY, 0, memory, 0)) == "ERROR_INVALID_VALUE"


def test_addresses_are_freed_when_nothing_is_mapped_there(driver, memory):
    address = mapped_at(driver, memory, READ)
    assert result(driver.cuMemAddressFree(address, GRANULARITY)) == "ERROR_INVALID_VALUE"
    assert result(driver.cuMemUnmap(address, GRANULARITY)) == "SUCCESS"
    assert result(driver.cuMemUnmap(address, GRANULARITY)) == "ERROR_INVALID_VALUE"
    assert result(driver.cuMemAddressFree(address, GRANULARITY)) == "SUCCESS"
    assert result(driver.cuMemAddressFree(address, GRANULARITY)) == "ERROR_INVALID_VALUE"


def test_access_is_what_was_granted(driver, memory):
    readable = mapped_at(driver, memory, READ)
    assert (read(readable), write(readable)) == (0, SEGMENTATION_FAULT)
    writable = mapped_at(driver, memory, READ_WRITE)
    assert (read(writable), write(writable)) == (0, 0)
    assert ctypes.string_at(readable, 1) == b"\1", "two mappings of one memory"


def test_without_access_or_after_unmapping_an_address_faults(driver, memory):
    address = int(driver.cuMemAddressReserve(GRANULARITY, 0, 0, 0)[1])
    assert read(address) == SEGMENTATION_FAULT
    driver.cuMemMap(address, GRANULARITY, 0, memory, 0)
    assert read(address) == SEGMENTATION_FAULT
    driver.cuMemSetAccess(address, GRANULARITY, [access(READ)], 1)
    assert read(address) == 0
    driver.cuMemUnmap(address, GRANULARITY)
    assert read(address) == SEGMENTATION_FAULT


def test_a_descriptor_of_something_else_is_not_imported(driver):
    fd = os.memfd_create("other")
    assert result(driver.cuMemImportFromShareableHandle(fd, POSIX)) == "ERROR_INVALID_VALUE"
    os.close(fd)
    assert result(driver.cuMemImportFromShareableHandle(fd, POSIX)) == "ERROR_INVALID_VALUE"


def test_an_ipc_handle_is_for_other_processes(driver):
    address = driver.cuMemAlloc(GRANULARITY)[1]
    handle = driver.cuIpcGetMemHandle(address)[1]
    assert result(driver.cuIpcOpenMemHandle(handle, 1)) == "ERROR_INVALID_CONTEXT"
    assert result(driver.cuIpcGetMemHandle(int(address) + 4096)) == "ERROR_INVALID_VALUE"
    assert result(driver.cuMemFree(address)) == "SUCCESS"
    assert result(driver.cuMemFree(address)) == "ERROR_INVALID_VALUE"


def test_a_call_that_is_not_faked_is_named():
    with pytest.raises(AttributeError, match="cuModuleLoad"):
        FakeCuda().cuModuleLoad("x")

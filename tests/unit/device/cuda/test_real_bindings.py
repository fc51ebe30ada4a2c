"""Our calls as the real bindings take them: those look at a call's arguments before they look for a driver."""

from collections.abc import Callable
from typing import Any

import pytest
from cuda.bindings import driver as real

from tandem.device.cuda.driver import open_driver
from tandem.device.cuda.gpu import read_gpu
from tandem.device.cuda.green import GreenBackend
from tandem.device.cuda.health import check_device
from tandem.device.cuda.ipc_export import BLOCK_BYTES, IpcSegment, write_handle
from tandem.device.cuda.ipc_holder import Holdings
from tandem.device.cuda.ipc_import import IpcImporter
from tandem.device.cuda.vmm_export import VmmExporter
from tandem.device.cuda.vmm_import import VmmImporter
from tandem.errors import DeviceError
from tandem.types import Phase, Split
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_cuda.host import fake_driver, host_bytes
from tests.support.fake_cuda.partition import Resource


def has_driver() -> bool:
    try:
        open_driver()
    except DeviceError:
        return False
    return True


pytestmark = pytest.mark.skipif(has_driver(), reason="there is a CUDA driver, which would carry the calls out")


class RealArguments:
    """The fake driver, each of whose calls is made to the real bindings first: those end at the missing driver."""

    def __init__(self, fake: FakeCuda) -> None:
        self._fake = fake
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        answer = getattr(self._fake, name)
        return self._both(name, answer) if name.startswith("cu") else answer

    def _both(self, name: str, fake_call: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with pytest.raises(RuntimeError):  # TypeError: an argument is not what the bindings take
                getattr(real, name)(*map(as_real, arguments))
            self.called.add(name)
            return fake_call(*arguments)

        return call


def as_real(argument: Any) -> Any:
    """Resources alone are the fake driver's own."""
    if isinstance(argument, list):
        return [as_real(each) for each in argument]
    return real.CUdevResource() if isinstance(argument, Resource) else argument


def test_memory_by_descriptors() -> None:
    driver = RealArguments(fake_driver())
    segment = VmmExporter(driver).create("kv", 1)
    importer = VmmImporter(driver, host_bytes)
    for writable in (True, False):
        importer.map(segment, writable=writable).close()
    importer.free_bytes()
    segment.close()
    mapping = {"cuMemAddressReserve", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemAddressFree", "cuMemGetInfo"}
    sharing = {"cuMemCreate", "cuMemExportToShareableHandle", "cuMemImportFromShareableHandle", "cuMemRelease"}
    assert driver.called >= mapping | sharing


def test_memory_by_handles() -> None:
    driver = RealArguments(fake_driver())
    holdings = Holdings(driver)
    handle = holdings.allocate(BLOCK_BYTES)
    segment = IpcSegment("kv", write_handle(handle, BLOCK_BYTES), BLOCK_BYTES, lambda: holdings.free(handle))
    with pytest.raises(DeviceError, match="INVALID_CONTEXT"):  # nobody opens what is its own
        IpcImporter(driver, host_bytes).map(segment, writable=True)
    segment.close()
    assert driver.called >= {"cuMemAlloc", "cuIpcGetMemHandle", "cuIpcOpenMemHandle", "cuMemFree"}


def test_shares(mps_cuda: Callable[[], FakeCuda]) -> None:
    driver = RealArguments(mps_cuda())
    assert read_gpu(driver).has_mps
    backend = GreenBackend(driver, [Phase.DECODE], lambda handle, num_sms: None)
    for split in (Split(50, 50), Split(30, 70), Split(100, 100)):
        backend.apply(Phase.DECODE, split)
    check_device(lambda: driver)
    cutting = {"cuDeviceGetDevResource", "cuDevSmResourceSplitByCount", "cuDevResourceGenerateDesc"}
    streams = {"cuGreenCtxCreate", "cuGreenCtxStreamCreate", "cuStreamSynchronize", "cuCtxSynchronize"}
    assert driver.called >= cutting | streams


def test_an_argument_of_another_type_is_seen() -> None:
    driver = RealArguments(fake_driver())
    with pytest.raises(TypeError):
        driver.cuMemCreate(1, "properties", 0)

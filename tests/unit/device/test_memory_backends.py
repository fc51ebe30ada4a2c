"""Which memory memd takes, and who maps it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tandem.device.cpu.memory import MemfdExporter, MemfdImporter
from tandem.device.memory import SegmentKind
from tandem.device.memory_backends import SegmentImporter, choose_exporter
from tandem.errors import ConfigError, DeviceError, DeviceFaultError
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_cuda.base import Attribute, DeviceSpec
from tests.support.fake_cuda.host import fake_driver


def no_driver() -> FakeCuda:
    raise DeviceError("no CUDA driver: not found")


def without(attribute: object) -> FakeCuda:
    spec = DeviceSpec()
    del spec.attributes[attribute]
    return fake_driver(spec)


def choice(backend: str, driver=fake_driver) -> tuple[str, str]:
    made = choose_exporter(backend, lambda: None, driver)
    return made.exporter.kind.value, made.reason


def test_the_machines_memory_where_there_is_no_driver():
    assert choice("auto", no_driver) == ("memfd", "no CUDA driver: not found")


def test_the_machines_memory_where_every_device_is_hidden():
    hidden = FakeCuda(DeviceSpec(num_devices=0))
    hidden.base.initialised = True
    kind, reason = choice("auto", lambda: hidden)
    assert (kind, "INVALID_DEVICE" in reason) == ("memfd", True)


def test_the_machines_memory_where_it_is_asked_for_and_no_driver_is_opened():
    assert choice("cpu", no_driver) == ("memfd", "configured")


@pytest.mark.parametrize("backend", ["auto", "cuda"])
def test_a_device_that_exports_descriptors(backend):
    kind, reason = choice(backend)
    assert (kind, "descriptors" in reason) == ("cuda-vmm", True)


@pytest.mark.parametrize("needed", ["VIRTUAL_MEMORY_MANAGEMENT", "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR"])
def test_legacy_ipc_where_the_device_does_not(needed):
    driver = without(getattr(Attribute, f"CU_DEVICE_ATTRIBUTE_{needed}_SUPPORTED"))
    assert choice("auto", lambda: driver) == ("cuda-ipc", f"the device has no {needed}_SUPPORTED")
    assert not driver.base.contexts


def test_legacy_ipc_where_the_device_says_so_but_exporting_fails(monkeypatch):
    driver = fake_driver()
    refused = (driver.CUresult.CUDA_ERROR_NOT_PERMITTED, None)
    monkeypatch.setattr(driver.memory, "cuMemExportToShareableHandle", lambda *_: refused)
    kind, reason = choice("auto", lambda: driver)
    assert (kind, "NOT_PERMITTED" in reason) == ("cuda-ipc", True)


def test_trying_leaves_nothing_behind():
    driver = fake_driver()
    choose_exporter("auto", lambda: None, lambda: driver)
    assert driver.memory.leaks == {}


def test_a_device_that_is_asked_for_must_be_there():
    with pytest.raises(DeviceError, match="no CUDA driver"):
        choice("cuda", no_driver)


@pytest.mark.parametrize("backend", ["auto", "cuda"])
def test_a_fault_is_no_reason_for_another_kind(backend):
    driver = fake_driver()
    driver.base.sticky = driver.CUresult.CUDA_ERROR_ECC_UNCORRECTABLE
    with pytest.raises(DeviceFaultError, match="ECC"):
        choice(backend, lambda: driver)


def test_an_unknown_backend_is_refused_by_its_key():
    with pytest.raises(ConfigError, match=r"memd\.memory_backend: no memory backend 'gpu'; there are auto, cpu, cuda"):
        choice("gpu")


def test_the_importer_of_a_kind_is_made_when_its_first_segment_comes():
    made: list[MemfdImporter] = []

    def make() -> MemfdImporter:
        made.append(MemfdImporter())
        return made[-1]

    importer = SegmentImporter({SegmentKind.MEMFD: make})
    assert not made
    segment = MemfdExporter().create("kv", 4096)
    for _ in range(2):
        importer.map(segment, writable=True).close()
    segment.close()
    assert len(made) == 1


def test_choosing_loads_no_torch():
    choosing = "from tandem.device.memory_backends import choose_exporter; choose_exporter('auto', print)"
    program = f"import sys; {choosing}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])

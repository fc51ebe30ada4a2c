"""The memory backends: which exporter memd has, and which importer a segment needs; imported when chosen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tandem.device.cpu.memory import MemfdExporter, MemfdImporter
from tandem.device.cuda.driver import DriverApi, check, open_driver
from tandem.device.memory import MappedSegment, MemoryExporter, MemoryImporter, SegmentHandle, SegmentKind
from tandem.errors import ConfigError, DeviceError, DeviceFaultError

Importers: TypeAlias = Mapping[SegmentKind, Callable[[], MemoryImporter]]

DEVICE_ORDINAL = 0  # of the devices that CUDA_VISIBLE_DEVICES leaves


@dataclass(frozen=True, slots=True)
class ExporterChoice:
    """What memd creates segments with, and why it is that."""

    exporter: MemoryExporter
    reason: str


def choose_exporter(
    backend: str, on_lost: Callable[[], None], open_the_driver: Callable[[], DriverApi] = open_driver
) -> ExporterChoice:
    """Of the backend that is configured. `on_lost`: called, in another thread, when the memory is gone.

    ConfigError for an unknown name; DeviceError when `cuda` is asked for and not to be had.
    """
    match backend:
        case "cpu":
            return ExporterChoice(MemfdExporter(), "configured")
        case "cuda":
            return _cuda_exporter(open_the_driver(), on_lost)
        case "auto":
            return _best_exporter(on_lost, open_the_driver)
    raise ConfigError("memd.memory_backend", f"no memory backend {backend!r}; there are auto, cpu, cuda")


def why_no_vmm(driver: DriverApi) -> str:
    """Empty when device memory can be exported as a descriptor here, which is tried; else the reason."""
    from tandem.device.cuda.vmm_export import VmmExporter

    device = check(driver, driver.cuDeviceGet(DEVICE_ORDINAL), "cuDeviceGet")
    for needed in ("VIRTUAL_MEMORY_MANAGEMENT", "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR"):
        attribute = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{needed}_SUPPORTED")
        if not check(driver, driver.cuDeviceGetAttribute(attribute, device), f"cuDeviceGetAttribute({needed})"):
            return f"the device has no {needed}_SUPPORTED"
    try:
        VmmExporter(driver, DEVICE_ORDINAL).create("probe", 1).close()
    except DeviceFaultError:
        raise
    except DeviceError as error:
        return str(error)
    return ""


class SegmentImporter:
    """A `SegmentMapper` of every kind: the one that a kind needs is made when its first segment comes."""

    def __init__(self, importers: Importers) -> None:
        self._makers = importers
        self._made: dict[SegmentKind, MemoryImporter] = {}

    def map(self, handle: SegmentHandle, *, writable: bool) -> MappedSegment:
        """See `SegmentMapper`."""
        if handle.kind not in self._made:
            self._made[handle.kind] = self._makers[handle.kind]()
        return self._made[handle.kind].map(handle, writable=writable)


def _best_exporter(on_lost: Callable[[], None], open_the_driver: Callable[[], DriverApi]) -> ExporterChoice:
    try:
        driver = open_the_driver()
        check(driver, driver.cuDeviceGet(DEVICE_ORDINAL), "cuDeviceGet")
    except DeviceFaultError:
        raise
    except DeviceError as error:
        return ExporterChoice(MemfdExporter(), str(error))
    return _cuda_exporter(driver, on_lost)


def _cuda_exporter(driver: DriverApi, on_lost: Callable[[], None]) -> ExporterChoice:
    problem = why_no_vmm(driver)
    if problem:
        from tandem.device.cuda.ipc_export import IpcExporter

        return ExporterChoice(IpcExporter(on_lost), problem)
    from tandem.device.cuda.vmm_export import VmmExporter

    return ExporterChoice(VmmExporter(driver, DEVICE_ORDINAL), "a CUDA device that exports memory as descriptors")


def _vmm_importer() -> MemoryImporter:
    from tandem.device.cuda.vmm_import import VmmImporter

    return VmmImporter(open_driver(), ordinal=DEVICE_ORDINAL)


def _ipc_importer() -> MemoryImporter:
    from tandem.device.cuda.ipc_import import IpcImporter

    return IpcImporter(open_driver(), ordinal=DEVICE_ORDINAL)


IMPORTERS: Importers = {
    SegmentKind.MEMFD: MemfdImporter,
    SegmentKind.CUDA_VMM: _vmm_importer,
    SegmentKind.CUDA_IPC: _ipc_importer,
}

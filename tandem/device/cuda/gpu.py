"""What a GPU is, read through the driver without making a context."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tandem.device.cuda.driver import DriverApi, check, open_driver
from tandem.errors import DeviceError, DeviceFaultError

ENV_PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
NAME_BYTES = 256
WHOLE_PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """A device as this process sees it; `has_mps`: this process is a client of MPS."""

    name: str
    cuda_version: tuple[int, int]  # the newest that the driver serves
    compute_capability: tuple[int, int]
    num_sms: int
    memory_bytes: int
    has_mps: bool


def read_gpu(driver: DriverApi, ordinal: int = 0) -> GpuFacts:
    """Of an initialised driver. DeviceError, also when there is no such device."""
    device = check(driver, driver.cuDeviceGet(ordinal), "cuDeviceGet")
    version = check(driver, driver.cuDriverGetVersion(), "cuDriverGetVersion")
    name = check(driver, driver.cuDeviceGetName(NAME_BYTES, device), "cuDeviceGetName")
    return GpuFacts(
        name=name.split(b"\0")[0].decode(),
        cuda_version=(version // 1000, version % 1000 // 10),
        compute_capability=(
            _attribute(driver, device, "COMPUTE_CAPABILITY_MAJOR"),
            _attribute(driver, device, "COMPUTE_CAPABILITY_MINOR"),
        ),
        num_sms=_attribute(driver, device, "MULTIPROCESSOR_COUNT"),
        memory_bytes=check(driver, driver.cuDeviceTotalMem(device), "cuDeviceTotalMem"),
        has_mps=bool(_attribute(driver, device, "MPS_ENABLED")),
    )


@dataclass(frozen=True, slots=True)
class GpuSearch:
    """What looking for a GPU came to; `reason` says why there is none."""

    gpu: GpuFacts | None
    reason: str = ""


def find_gpu(open_the_driver: Callable[[], DriverApi] = open_driver) -> GpuSearch:
    """The first device. Initialises the driver, which makes this process a client of MPS where it runs.

    DeviceFaultError: there is one, for another process: MPS serves nobody new while it recovers from a fault.
    """
    try:
        return GpuSearch(read_gpu(open_the_driver()))
    except DeviceFaultError:
        raise
    except DeviceError as error:
        return GpuSearch(None, str(error))


def running_percentage(environ: Mapping[str, str]) -> float:
    """MPS's bound on this process's SMs in percent, fixed when the process began to use CUDA; 100 where none is set.

    DeviceError for what is no number in (0, 100]: MPS would ignore it.
    """
    text = environ.get(ENV_PERCENTAGE, "")
    try:
        percent = float(text) if text else WHOLE_PERCENT
    except ValueError:
        percent = 0.0
    if not 0 < percent <= WHOLE_PERCENT:
        raise DeviceError(f"{ENV_PERCENTAGE}: got {text!r}; expected a percentage in (0, 100]")
    return percent


def _attribute(driver: DriverApi, device: object, name: str) -> int:
    attribute = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    value: int = check(driver, driver.cuDeviceGetAttribute(attribute, device), f"cuDeviceGetAttribute({name})")
    return value

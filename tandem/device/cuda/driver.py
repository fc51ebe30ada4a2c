"""The one way to the CUDA driver API: cuda-bindings' module, its result codes turned into errors.

The functions are those of `cuda.bindings.driver` under their own names; each returns a tuple that begins with the
result code. Whoever needs the driver is passed a `DriverApi`, so that a test can pass one that has no GPU.
"""

from typing import Any, Final

from tandem.errors import DeviceError, DeviceFaultError

DriverApi = Any
"""`cuda.bindings.driver`, or what answers like it. The module has no types to check against."""

STICKY_RESULTS: Final = frozenset(
    {
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_HARDWARE_STACK_ERROR",
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "CUDA_ERROR_MISALIGNED_ADDRESS",
        "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "CUDA_ERROR_INVALID_PC",
        "CUDA_ERROR_LAUNCH_FAILED",
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "CUDA_ERROR_CONTAINED",
        "CUDA_ERROR_EXTERNAL_DEVICE",
        "CUDA_ERROR_MPS_CLIENT_TERMINATED",
        "CUDA_ERROR_MPS_RPC_FAILURE",
        "CUDA_ERROR_MPS_SERVER_NOT_READY",
    }
)
"""After these every later call of the process fails as well: only a new process can use the device."""


def open_driver() -> DriverApi:
    """The real driver, initialised; makes no context. DeviceError where there is none, with the remedy."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError("cuda-bindings is not installed: pip install 'tandem-serve[cuda]'") from error
    try:
        check(driver, driver.cuInit(0), "cuInit")
    except (RuntimeError, OSError) as error:  # the bindings' own errors when libcuda is not to be found
        raise DeviceError(f"no CUDA driver: {error}") from error
    return driver


def check(driver: DriverApi, result: tuple[Any, ...], call: str) -> Any:
    """What `call` returned beside its code: nothing, one value, a tuple. DeviceError, or DeviceFaultError if sticky."""
    code, *values = result
    if code == driver.CUresult.CUDA_SUCCESS:
        return values[0] if len(values) == 1 else tuple(values) or None
    name = driver.CUresult(code).name
    kind = DeviceFaultError if name in STICKY_RESULTS else DeviceError
    raise kind(f"{call}: {name} ({int(code)})")

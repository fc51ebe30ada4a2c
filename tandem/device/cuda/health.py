"""Whether this process can still use its GPU: a fault of a kernel shows in whatever call comes next."""

from collections.abc import Callable

from tandem.device.cuda.driver import DriverApi, check, open_driver
from tandem.errors import DeviceError, DeviceFaultError


def check_device(open_the_driver: Callable[[], DriverApi] = open_driver) -> None:
    """Waits until the calling thread's work has ended, if it uses a GPU at all.

    DeviceFaultError when nothing but a new process can use the GPU.
    """
    try:
        driver = open_the_driver()
        check(driver, driver.cuCtxSynchronize(), "cuCtxSynchronize")
    except DeviceFaultError:
        raise
    except DeviceError:
        return  # no driver, or no context: this thread uses no GPU

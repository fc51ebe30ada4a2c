"""Whether this process can still use its GPU: a fault of a kernel shows in whatever call comes next."""

from collections.abc import Callable

from tandem.device.cuda.driver import DriverApi, check, open_driver
from tandem.device.cuda.primary_context import PrimaryContext
from tandem.errors import DeviceError, DeviceFaultError

DEVICE_ORDINAL = 0


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


def idle_check(open_the_driver: Callable[[], DriverApi] = open_driver) -> Callable[[], None]:
    """To be called now and then in a process that uses a GPU and gives it nothing to do, on any thread.

    It raises DeviceFaultError when another process's fault has reached this one: under MPS nobody new is served as long
    as this one stays. DeviceError: no device.
    """
    context = PrimaryContext(open_the_driver(), DEVICE_ORDINAL)

    def look() -> None:
        try:
            context.synchronize()
        except DeviceFaultError:
            raise
        except DeviceError:
            return  # nothing that a new process would mend

    return look

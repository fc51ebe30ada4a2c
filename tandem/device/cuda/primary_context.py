"""A device's primary context: the one that torch uses as well, so addresses mapped in it are good in every kernel."""

from collections.abc import Iterator
from contextlib import contextmanager

from tandem.device.cuda.driver import DriverApi, check


class PrimaryContext:
    """Kept alive as long as the process: what is mapped in it must not go before the last kernel."""

    def __init__(self, driver: DriverApi, ordinal: int) -> None:
        """`driver` is initialised. DeviceError when there is no such device."""
        self._driver = driver
        device = check(driver, driver.cuDeviceGet(ordinal), "cuDeviceGet")
        self._context = check(driver, driver.cuDevicePrimaryCtxRetain(device), "cuDevicePrimaryCtxRetain")

    @contextmanager
    def current(self) -> Iterator[None]:
        """Current on the calling thread inside the block; what was current before is so again after it."""
        check(self._driver, self._driver.cuCtxPushCurrent(self._context), "cuCtxPushCurrent")
        try:
            yield
        finally:
            check(self._driver, self._driver.cuCtxPopCurrent(), "cuCtxPopCurrent")

    def synchronize(self) -> None:
        """Waits for everything that this process has given the device. DeviceFaultError after a fault."""
        with self.current():
            check(self._driver, self._driver.cuCtxSynchronize(), "cuCtxSynchronize")

    def free_bytes(self) -> int:
        """Of the device's memory, whoever uses the rest."""
        with self.current():
            free_bytes, _ = check(self._driver, self._driver.cuMemGetInfo(), "cuMemGetInfo")
        return int(free_bytes)

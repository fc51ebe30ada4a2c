"""The holder of device memory over the fake driver, run as the exporter runs the real one."""

import sys

from tandem.device.cuda.ipc_holder import main
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_cuda.base import Attribute, DeviceSpec


def driver_without_vmm() -> FakeCuda:
    spec = DeviceSpec()
    spec.attributes[Attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED] = 0
    driver = FakeCuda(spec)
    driver.cuInit(0)
    return driver


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], driver_without_vmm))

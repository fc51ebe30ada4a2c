from collections.abc import Callable

import pytest
from cuda.bindings import driver as real

from tests.support.fake_cuda import FakeCuda
from tests.support.fake_cuda.base import DeviceSpec

ATTRIBUTE = real.CUdevice_attribute


@pytest.fixture
def mps_cuda() -> Callable[..., FakeCuda]:
    """Makes the initialised driver of one process, which is a client of MPS unless told otherwise."""

    def make(*, mps_enabled: int = 1, num_sms: int = 132, capability: tuple[int, int] = (9, 0)) -> FakeCuda:
        spec = DeviceSpec()
        spec.attributes[ATTRIBUTE.CU_DEVICE_ATTRIBUTE_MPS_ENABLED] = mps_enabled
        spec.attributes[ATTRIBUTE.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT] = num_sms
        spec.attributes[ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] = capability[0]
        spec.attributes[ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR] = capability[1]
        cuda = FakeCuda(spec)
        cuda.cuInit(0)
        return cuda

    return make

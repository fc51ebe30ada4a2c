"""A CUDA driver without a GPU: the functions of `cuda.bindings.driver`, which it may stand in for as a `DriverApi`.

It enforces the driver's contract as the manual states it, on memory of this machine. It shows that our calls are made
in the right order with the right arguments; that a GPU then does what is wanted, it cannot show.
"""

from typing import Any

from cuda.bindings import driver as real

from tests.support.fake_cuda.base import Base, DeviceSpec, Part
from tests.support.fake_cuda.memory import MemoryCalls
from tests.support.fake_cuda.partition import Partition


class FakeCuda:
    """One process's driver. `base` and the parts hold what tests look at."""

    def __init__(self, spec: DeviceSpec | None = None) -> None:
        self.base = Base(spec or DeviceSpec())
        self.memory = MemoryCalls(self.base)
        self.partition = Partition(self.base)
        self._parts: tuple[Part, ...] = (self.base, self.memory, self.partition)

    def __getattr__(self, name: str) -> Any:
        for part in self._parts:
            if name.startswith("cu") and hasattr(part, name):
                return getattr(part, name)
        if name.startswith("CU"):
            return getattr(real, name)
        raise AttributeError(f"the fake driver has no {name}")

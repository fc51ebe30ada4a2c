"""The state that the fake driver's parts share, and the calls that every program begins with.

Enums and structures are those of `cuda.bindings.driver`. A part is a class whose methods are named like the driver's
functions and marked with `driver_call`: they return their values, or raise `Refused`, and callers get the tuples that
the real functions return.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Protocol

from cuda.bindings import driver as real

SUCCESS = real.CUresult.CUDA_SUCCESS
Attribute = real.CUdevice_attribute

H200_ATTRIBUTES = {
    Attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: 132,
    Attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: 9,
    Attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: 0,
    Attribute.CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: 1,
    Attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: 1,
    Attribute.CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED: 1,
}


class Refused(Exception):  # noqa: N818 - a result, not a failure of the fake
    """The call returns `result` and nothing else."""

    def __init__(self, result: Any) -> None:
        super().__init__(result.name)
        self.result = result


@dataclass
class DeviceSpec:
    """What the fake device is. Attributes that are not named are 0."""

    name: str = "NVIDIA H200 (fake)"
    memory_bytes: int = 1 << 30
    driver_version: int = 13000
    num_devices: int = 1
    attributes: dict[Any, int] = field(default_factory=H200_ATTRIBUTES.copy)


class Part(Protocol):
    """A set of calls; `base` is the one that all parts share."""

    @property
    def base(self) -> "Base": ...


def driver_call(*, needs_context: bool = False, needs_init: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Makes a method a driver function: recorded, refused without what it needs, its values behind a result code."""

    def decorate(method: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        @wraps(method)
        def call(self: Part, *arguments: Any) -> tuple[Any, ...]:
            base = self.base
            base.calls.append(method.__name__)
            try:
                base.admit(needs_init=needs_init, needs_context=needs_context)
                value = method(self, *arguments)
            except Refused as refused:
                return (refused.result, None)
            if value is None:
                return (SUCCESS,)
            return (SUCCESS, *value) if isinstance(value, tuple) else (SUCCESS, value)

        return call

    return decorate


class Base:
    """Initialisation, devices and contexts. Tests read `calls`, and set `sticky` to what a fault left behind."""

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self.calls: list[str] = []
        self.sticky: Any = None  # a CUresult: from then on every call returns it
        self.initialised = False
        self.contexts: set[int] = set()  # alive
        self.primary_retains = 0
        self._next_context = 0xC0
        self._primary = 0
        self._current = threading.local()

    @property
    def base(self) -> "Base":
        """Itself: it is a part as well."""
        return self

    @property
    def current_context(self) -> int:
        """Of the calling thread; 0: none, or one that is destroyed."""
        context = self._stack()[-1] if self._stack() else 0
        return context if context in self.contexts else 0

    def admit(self, *, needs_init: bool, needs_context: bool) -> None:
        """Refused: a fault before, no cuInit, or no context current where one is needed."""
        if self.sticky is not None:
            raise Refused(self.sticky)
        if needs_init and not self.initialised:
            raise Refused(real.CUresult.CUDA_ERROR_NOT_INITIALIZED)
        if needs_context and not self.current_context:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_CONTEXT)

    def new_context(self) -> int:
        """A context of its own, not current anywhere."""
        self._next_context += 1
        self.contexts.add(self._next_context)
        return self._next_context

    def end_context(self, context: int) -> None:
        """Refused when there is none such."""
        if context not in self.contexts:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_CONTEXT)
        self.contexts.remove(context)

    def check_device(self, device: Any) -> None:
        """Refused when there is none such."""
        if not 0 <= int(device) < self.spec.num_devices:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_DEVICE)

    @driver_call(needs_init=False)
    def cuInit(self, flags: int) -> None:  # noqa: N802
        if flags:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_VALUE)
        if not self.spec.num_devices:
            raise Refused(real.CUresult.CUDA_ERROR_NO_DEVICE)
        self.initialised = True

    @driver_call(needs_init=False)
    def cuDriverGetVersion(self) -> int:  # noqa: N802
        return self.spec.driver_version

    @driver_call()
    def cuDeviceGetCount(self) -> int:  # noqa: N802
        return self.spec.num_devices

    @driver_call()
    def cuDeviceGet(self, ordinal: int) -> Any:  # noqa: N802
        self.check_device(ordinal)
        return real.CUdevice(ordinal)

    @driver_call()
    def cuDeviceGetName(self, length: int, device: Any) -> bytes:  # noqa: N802
        self.check_device(device)
        return self.spec.name.encode()[: length - 1]

    @driver_call()
    def cuDeviceTotalMem(self, device: Any) -> int:  # noqa: N802
        self.check_device(device)
        return self.spec.memory_bytes

    @driver_call()
    def cuDeviceGetAttribute(self, attribute: Any, device: Any) -> int:  # noqa: N802
        self.check_device(device)
        return self.spec.attributes.get(attribute, 0)

    @driver_call()
    def cuDevicePrimaryCtxRetain(self, device: Any) -> Any:  # noqa: N802
        self.check_device(device)
        if not self.primary_retains:
            self._primary = self.new_context()
        self.primary_retains += 1
        return real.CUcontext(self._primary)

    @driver_call()
    def cuDevicePrimaryCtxRelease(self, device: Any) -> None:  # noqa: N802
        self.check_device(device)
        if not self.primary_retains:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_CONTEXT)
        self.primary_retains -= 1
        if not self.primary_retains:
            self.end_context(self._primary)

    @driver_call()
    def cuCtxGetCurrent(self) -> Any:  # noqa: N802
        return real.CUcontext(self.current_context)

    @driver_call()
    def cuCtxSetCurrent(self, context: Any) -> None:  # noqa: N802
        if int(context) and int(context) not in self.contexts:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_CONTEXT)
        del self._stack()[-1:]
        if int(context):
            self._stack().append(int(context))

    @driver_call()
    def cuCtxPushCurrent(self, context: Any) -> None:  # noqa: N802
        if int(context) not in self.contexts:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_CONTEXT)
        self._stack().append(int(context))

    @driver_call(needs_context=True)
    def cuCtxPopCurrent(self) -> Any:  # noqa: N802
        return real.CUcontext(self._stack().pop())

    @driver_call(needs_context=True)
    def cuCtxSynchronize(self) -> None:  # noqa: N802
        return None

    def _stack(self) -> list[int]:
        if not hasattr(self._current, "stack"):
            self._current.stack = []
        stack: list[int] = self._current.stack
        return stack

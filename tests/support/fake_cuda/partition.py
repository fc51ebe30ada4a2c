"""SM resources, green contexts and streams of the fake driver, for compute capability 9.x: groups of 8 and no fewer.

A resource remembers which SMs it is made of, so that tests can ask which SMs a stream's work runs on.
"""

from dataclasses import dataclass
from typing import Any

from cuda.bindings import driver as real

from tests.support.fake_cuda.base import Base, Refused, driver_call

MIN_SMS = STEP_SMS = 8
INVALID_VALUE = real.CUresult.CUDA_ERROR_INVALID_VALUE
BAD_RESOURCES = real.CUresult.CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION
SM_TYPE = real.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM


@dataclass
class Resource:
    """A CUdevResource as a program sees it, and the SMs behind it; `split_id`: of the call that made it, if any."""

    sms: frozenset[int]
    split_id: int = 0

    @property
    def sm(self) -> Any:
        resource = real.CUdevSmResource()
        resource.smCount = len(self.sms)
        return resource

    @property
    def type(self) -> Any:
        return SM_TYPE


class Partition:
    """Tests read `green` (contexts and their SMs), `streams` (and their SMs) and `synchronised` (stream handles)."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.green: dict[int, frozenset[int]] = {}
        self.streams: dict[int, frozenset[int]] = {}
        self.synchronised: list[int] = []
        self._descs: dict[int, frozenset[int]] = {}
        self._num_splits = 0
        self._next_handle = 0x1000

    @driver_call()
    def cuDeviceGetDevResource(self, device: Any, kind: Any) -> Resource:  # noqa: N802
        self.base.check_device(device)
        if kind != SM_TYPE:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_RESOURCE_TYPE)
        num_sms = self.base.spec.attributes[real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT]
        return Resource(frozenset(range(num_sms)))

    @driver_call()
    def cuDevSmResourceSplitByCount(  # noqa: N802
        self, num_groups: int, resource: Resource, flags: int, min_count: int
    ) -> tuple[list[Resource], int, Resource]:
        """Cuts from the front; as many groups as fit, at most `num_groups`. What a split made cannot be split again."""
        if not num_groups or flags or not 0 <= min_count <= len(resource.sms) or resource.split_id:
            raise Refused(INVALID_VALUE)
        size = max(MIN_SMS, -(-min_count // STEP_SMS) * STEP_SMS)
        made = min(num_groups, len(resource.sms) // size)
        sms = sorted(resource.sms)
        self._num_splits += 1
        groups = [Resource(frozenset(sms[size * i : size * (i + 1)]), self._num_splits) for i in range(made)]
        return groups, made, Resource(frozenset(sms[size * made :]), self._num_splits)

    @driver_call()
    def cuDevResourceGenerateDesc(self, resources: list[Resource], num_resources: int) -> int:  # noqa: N802
        if not resources or len(resources) != num_resources:
            raise Refused(INVALID_VALUE)
        sms = frozenset().union(*(resource.sms for resource in resources))
        from_one_split = len({resource.split_id for resource in resources}) == 1
        twice = len(sms) < sum(len(resource.sms) for resource in resources)
        if not from_one_split or twice or len(sms) < MIN_SMS:
            raise Refused(BAD_RESOURCES)
        return self._keep(self._descs, sms)

    @driver_call()
    def cuGreenCtxCreate(self, desc: int, device: Any, flags: Any) -> Any:  # noqa: N802
        self.base.check_device(device)
        if desc not in self._descs or flags != real.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM:
            raise Refused(INVALID_VALUE)
        self.base.cuDevicePrimaryCtxRetain(device)
        return real.CUgreenCtx(self._keep(self.green, self._descs[desc]))

    @driver_call()
    def cuGreenCtxDestroy(self, context: Any) -> None:  # noqa: N802
        if int(context) not in self.green:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_CONTEXT)
        del self.green[int(context)]
        self.base.cuDevicePrimaryCtxRelease(0)

    @driver_call()
    def cuGreenCtxStreamCreate(self, context: Any, flags: Any, priority: int) -> Any:  # noqa: N802
        if int(context) not in self.green:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_CONTEXT)
        if flags != real.CUstream_flags.CU_STREAM_NON_BLOCKING:
            raise Refused(INVALID_VALUE)
        return real.CUstream(self._keep(self.streams, self.green[int(context)]))

    @driver_call(needs_context=True)
    def cuStreamSynchronize(self, stream: Any) -> None:  # noqa: N802
        self._check_stream(stream)
        self.synchronised.append(int(stream))

    @driver_call()
    def cuStreamDestroy(self, stream: Any) -> None:  # noqa: N802
        self._check_stream(stream)
        del self.streams[int(stream)]

    def _check_stream(self, stream: Any) -> None:
        if int(stream) not in self.streams:
            raise Refused(real.CUresult.CUDA_ERROR_INVALID_HANDLE)

    def _keep(self, where: dict[int, frozenset[int]], sms: frozenset[int]) -> int:
        self._next_handle += 1
        where[self._next_handle] = sms
        return self._next_handle

"""`mps-green`: a share is a green context's stream. All are made at the start; a switch only changes the stream."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from tandem.device.cuda.driver import DriverApi, check
from tandem.device.cuda.gpu import GpuFacts, read_gpu
from tandem.device.cuda.primary_context import PrimaryContext
from tandem.device.cuda.sm_split import SmGroups, SmShare, describe, grain_of, plan_share, shares_of, splits_of, whole
from tandem.device.cuda.step_stream import UseStream
from tandem.device.partition import Applied, RestartRequired
from tandem.errors import DeviceError
from tandem.types import Phase, Split

DEVICE_ORDINAL = 0


@dataclass(frozen=True, slots=True)
class CutDevice:
    """The device's SMs as the driver has cut them, with the driver's own values; the same cut in every process."""

    groups: SmGroups
    everything: Any  # CUdevResource
    parts: tuple[Any, ...]  # CUdevResource, one a group


@dataclass(frozen=True, slots=True)
class GreenStream:
    """A stream whose work runs on a share of the SMs. Owns its green context."""

    context: Any  # CUgreenCtx
    stream: Any  # CUstream


class GreenBackend:
    """Owns a green context and a stream for every share of its phases, until the process ends."""

    def __init__(
        self, driver: DriverApi, phases: Sequence[Phase], use_stream: UseStream, *, is_alone: bool = False
    ) -> None:
        """`driver` is initialised. DeviceError without MPS: two processes would take turns, whatever their SMs.

        `is_alone`: no other process uses the device, as in a measurement; then it may be without.
        """
        gpu = read_gpu(driver, DEVICE_ORDINAL)
        if not gpu.has_mps and not is_alone:
            raise DeviceError("mps-green: this process is no client of MPS; see `tandem doctor`")
        self._driver = driver
        self._use_stream = use_stream
        self._current: GreenStream | None = None
        self._device = check(driver, driver.cuDeviceGet(DEVICE_ORDINAL), "cuDeviceGet")
        # Green contexts live on the primary context, which would be made and ended with each of them otherwise.
        self._context = PrimaryContext(driver, DEVICE_ORDINAL)
        self._cut = cut_device(driver, self._device, gpu)
        wanted = dict.fromkeys(share for phase in phases for share in shares_of(phase, self._cut.groups))
        self._streams = {share: make_green_stream(driver, self._device, self._cut, share) for share in wanted}

    @property
    def name(self) -> str:
        """As in configuration and logs."""
        return "mps-green"

    @property
    def splits(self) -> tuple[Split, ...]:
        """Those whose parts are there."""
        return splits_of(self._cut.groups)

    @property
    def pause(self) -> None:
        """Both phases run at once."""

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        """Called on the thread that computes: a stream is current for a thread. The old stream's work ends first."""
        share = plan_share(phase, split, self._cut.groups)
        chosen = self._streams[share]
        if self._current is not None:
            with self._context.current():  # a thread that has not computed yet has no context of its own accord
                check(self._driver, self._driver.cuStreamSynchronize(self._current.stream), "cuStreamSynchronize")
        self._use_stream(int(chosen.stream), share.num_sms)
        self._current = chosen
        return Applied(describe(share, self._cut.groups))

    def turn(self) -> AbstractContextManager[None]:
        """Both phases run at once."""
        return nullcontext()


def cut_device(driver: DriverApi, device: Any, gpu: GpuFacts) -> CutDevice:
    """As many of the smallest groups as the driver makes. DeviceError where it cannot cut."""
    sm_type = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    everything = check(driver, driver.cuDeviceGetDevResource(device, sm_type), "cuDeviceGetDevResource")
    group_sms = grain_of(gpu.compute_capability).group_sms
    num_sms = everything.sm.smCount
    split = driver.cuDevSmResourceSplitByCount(num_sms // group_sms, everything, 0, group_sms)
    parts, num_groups, _ = check(driver, split, "cuDevSmResourceSplitByCount")
    sizes = {part.sm.smCount for part in parts[:num_groups]}
    if len(sizes) != 1:
        raise DeviceError(f"the driver cut {num_sms} SMs into groups of {sorted(sizes)}; expected one size")
    return CutDevice(SmGroups(num_sms, sizes.pop(), num_groups), everything, tuple(parts[:num_groups]))


def make_green_stream(driver: DriverApi, device: Any, cut: CutDevice, share: SmShare) -> GreenStream:
    """A new green context of the share's SMs, and a stream in it. DeviceError."""
    parts = [cut.everything] if share == whole(cut.groups) else [cut.parts[index] for index in share.groups]
    desc = check(driver, driver.cuDevResourceGenerateDesc(parts, len(parts)), "cuDevResourceGenerateDesc")
    default_stream = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    context = check(driver, driver.cuGreenCtxCreate(desc, device, default_stream), "cuGreenCtxCreate")
    non_blocking = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
    stream = check(driver, driver.cuGreenCtxStreamCreate(context, non_blocking, 0), "cuGreenCtxStreamCreate")
    return GreenStream(context, stream)

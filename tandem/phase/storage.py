"""Attaching to memd: from its segments to a model that runs."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import structlog
import torch

from kernels.choice import KernelChoice, choose_kernels
from kernels.table import Kernels
from tandem.config.settings import PhaseConfig
from tandem.device.memory import MappedSegment, SegmentHandle, SegmentMapper
from tandem.errors import NotReadyError
from tandem.kv.layout import LAYOUT, KvLayout
from tandem.kv.store import Holding
from tandem.model.config import ModelConfig, WeightManifest
from tandem.model.family import Decoder
from tandem.model.registry import get_family
from tandem.model.views import weight_views
from tandem.runner.cuda.graphs import StepStream
from tandem.runner.cuda.opening import open_cuda_steps
from tandem.runner.model_runner import ModelRunner
from tandem.runner.sampler import sample
from tandem.runner.segment_steps import SegmentSteps
from tandem.runner.steps import LogitsThenDraws, SegmentRunner, StepRunner
from tandem.runner.wiping import wipe_blocks
from tandem.types import Fingerprint

_log = structlog.get_logger()

RETRY_S = 0.1
WEIGHTS, KV = "weights", "kv"

AnswerT = TypeVar("AnswerT")


class AttachmentLike(Protocol):
    """What `tandem.rpc.memd_client.Attachment` is to a phase."""

    @property
    def holder_id(self) -> int:
        """Names this phase in memd."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the storage."""
        ...

    @property
    def model_config(self) -> ModelConfig:
        """Of the loaded model."""
        ...

    @property
    def manifest(self) -> WeightManifest:
        """Of the weight segment."""
        ...

    @property
    def kv_layout(self) -> KvLayout:
        """Of the KV segment."""
        ...

    @property
    def segments(self) -> Mapping[str, SegmentHandle]:
        """``weights`` and ``kv``; of a holder's first attachment alone."""
        ...

    @property
    def holding(self) -> Holding:
        """What memd said, when it attached, that the holder has."""
        ...

    @property
    def ended(self) -> asyncio.Event:
        """Set when memd is gone."""
        ...

    async def next_reclaim(self) -> int:
        """Blocks that memd asks back. NotReadyError when the attachment has ended."""
        ...

    async def attach_again(self) -> "AttachmentLike":
        """The holder's next, when this one has ended. NotReadyError: memd is away. StorageLostError: gone for good."""
        ...

    async def detach(self) -> None:
        """Ends the attachment; the spare blocks return."""
        ...


@dataclass(frozen=True, slots=True)
class MappedModel:
    """The model over memd's segments, which stay mapped as long as this lives."""

    steps: StepRunner
    open_segments: Callable[[], SegmentRunner]
    wipe: Callable[[Sequence[int]], None]  # zeroes blocks
    segments: tuple[MappedSegment, ...]
    is_on_gpu: bool


def claim(config: PhaseConfig) -> Fingerprint:
    """What this phase insists on; memd refuses the attachment when it differs."""
    return Fingerprint(dtype=config.dtype, layout=LAYOUT)


class Attacher(Protocol):
    """What `tandem.rpc.memd_client.MemdClient` is to an attaching phase."""

    async def attach(self, service: str, pid: int, fingerprint: Fingerprint) -> AttachmentLike:
        """NotReadyError while memd is away or loading. FingerprintMismatchError."""
        ...


async def attach(client: Attacher, service: str, pid: int, fingerprint: Fingerprint) -> AttachmentLike:
    """Tries until memd answers, and says so. FingerprintMismatchError: another try would not help."""
    attachment = await until_memd_answers(partial(client.attach, service, pid, fingerprint))
    _log.info("memd.attached", holder_id=attachment.holder_id, fingerprint=attachment.fingerprint)
    return attachment


async def until_memd_answers(attempt: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    """Tries until there is no NotReadyError, each new one of which is one event. gRPC's channel backs off beneath."""
    told = ""
    while True:
        try:
            return await attempt()
        except NotReadyError as error:
            if str(error) != told:
                told = str(error)
                _log.warning("memd.waiting", error=told)
            await asyncio.sleep(RETRY_S)


def map_model(
    attachment: AttachmentLike,
    importer: SegmentMapper,
    choose: Callable[[torch.dtype], KernelChoice] = choose_kernels,
    stream: StepStream | None = None,
) -> MappedModel:
    """Maps weights read-only and KV read-write; no byte is copied. DeviceError, UnsupportedModelError.

    What was mapped decides how steps are run: on the CPU with the kernels that `choose` answers, or on a GPU, where
    `stream` knows what the thread that computes runs on. The latter's probes have grids for the whole device.
    """
    weights = _map(attachment, importer, WEIGHTS, writable=False)
    kv = _map(attachment, importer, KV, writable=True)
    config, layout = attachment.model_config, attachment.kv_layout
    kv_cache, views = kv.tensor(layout.dtype, layout.shape), weight_views(weights, attachment.manifest)
    build = partial(get_family(config.family).build, config, views)
    if kv_cache.is_cuda:
        chosen = choose_kernels(kv_cache.dtype, kv_cache.device)
        steps: StepRunner = open_cuda_steps(build, kv_cache, config.vocab_size, stream or StepStream())
    else:
        chosen = choose(kv_cache.dtype)
        steps = _host_steps(build, kv_cache, chosen.kernels)
    _log.info("kernels.chosen", kernels=chosen.kernels.name, reason=chosen.reason)
    open_segments = partial(SegmentSteps, config, views, chosen.kernels, kv_cache)
    return MappedModel(steps, open_segments, partial(wipe_blocks, kv_cache), (weights, kv), kv_cache.is_cuda)


def choose_pausing_kernels(pause: Callable[[], None] | None, dtype: torch.dtype) -> KernelChoice:
    """As `choose_kernels`; long steps call `pause` between layers."""
    choice = choose_kernels(dtype)
    return replace(choice, kernels=replace(choice.kernels, pause=pause))


def _host_steps(build: Callable[[Kernels], Decoder], kv_cache: torch.Tensor, kernels: Kernels) -> LogitsThenDraws:
    runner = ModelRunner(build(kernels), kv_cache, block_size=kv_cache.shape[3])
    return LogitsThenDraws(runner, partial(sample, draw_by=kernels.draw_tokens))


def _map(attachment: AttachmentLike, importer: SegmentMapper, name: str, *, writable: bool) -> MappedSegment:
    return importer.map(attachment.segments[name], writable=writable)

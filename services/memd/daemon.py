"""memd's storage, and how it comes to be from an empty start; `services.memd.resuming` goes on with an earlier one."""

import asyncio
import mmap
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.memd.description import Description, differences, identity_of, write_description
from services.memd.loader_protocol import LoadPlan
from services.memd.loading import Loader
from services.memd.store import LocalStore, StorageFacts
from tandem import __version__
from tandem.clock import Clock
from tandem.config.settings import MemdConfig
from tandem.device.cpu.memory import MemfdExporter
from tandem.device.memory import ExportedSegment, MemoryExporter, SegmentHandle, SegmentKind
from tandem.errors import ConfigError, DeviceError, ModelError, NotReadyError, StorageLostError
from tandem.kv.layout import LAYOUT, KvLayout
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.model.config import ModelConfig, WeightManifest
from tandem.types import Fingerprint

MIN_BLOCKS = 8
HOST_KV_BYTES = 1 << 30
DEVICE_SHARE = 0.9  # of the GPU's free memory, for weights and KV
HANDLE_SOCKET = "memd.fd.sock"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Segments:
    """What memd owns. Phases get the weights and the KV; the ledger stays here, and what describes them all."""

    weights: SegmentHandle
    kv: SegmentHandle
    ledger: SegmentHandle
    description: SegmentHandle

    @property
    def all(self) -> tuple[SegmentHandle, ...]:
        """What a keeper gets."""
        return (self.weights, self.kv, self.ledger, self.description)


@dataclass(frozen=True, slots=True)
class Storage:
    """A loaded model's segments, described, and the store over their blocks."""

    segments: Segments
    store: LocalStore
    plan: LoadPlan
    kv_layout: KvLayout
    handle_socket: Path


class Daemon:
    """Has storage once the model is loaded, or the storage of the memd before is taken up."""

    def __init__(self) -> None:
        self._storage: Storage | None = None
        self._begun_anew = False

    @property
    def storage(self) -> Storage:
        """NotReadyError while the model is loading."""
        if self._storage is None:
            raise NotReadyError("memd is loading the model")
        return self._storage

    def storage_of(self, epoch: int) -> Storage:
        """For a holder from then. StorageLostError when it is not that storage; NotReadyError: it may be, soon."""
        if self._begun_anew and self._storage is None:
            raise StorageLostError("memd has begun anew: it is loading the model")
        storage = self.storage
        actual = storage.store.current_statistics().epoch
        if epoch != actual:
            raise StorageLostError(f"memd has begun anew: its storage is of epoch {actual}, not {epoch}")
        return storage

    def begin_anew(self) -> None:
        """There will be other storage than any memd before had."""
        self._begun_anew = True

    def ready(self, storage: Storage) -> None:
        """Phases may attach from now on."""
        self._storage = storage


async def load_storage(
    config: MemdConfig,
    exporter: MemoryExporter,
    clock: Clock,
    loader: Callable[[MemdConfig, SegmentKind], Loader] = Loader,
) -> Storage:
    """Loads the model and makes every segment; `exporter` is for weights and KV, the ledger is always memd's to read.

    ModelError, ConfigError (``memd.kv_bytes``), DeviceError.
    """
    started_s = clock.now()
    identity = identity_of(config)
    async with loader(config, exporter.kind) as child:
        plan = await child.plan()
        layout = plan_kv(config, plan, exporter.kind)
        description = Description(identity, plan, layout)
        weights, kv = await asyncio.to_thread(_make_segments, exporter, plan, layout)
        await child.fill(weights, kv)
    if differences(identity, identity_of(config)):
        raise ModelError(f"{config.model}: changed while it was read")
    weights.seal()
    ledger = MemfdExporter().create("ledger", ledger_bytes(layout.num_blocks, layout.block_size))
    segments = Segments(weights, kv, ledger, write_description(description))
    store = LocalStore(_new_ledger(ledger, layout), facts_of(config, description, segments), clock)
    _log.info(
        "model.loaded",
        model=plan.model_name,
        digest=plan.digest,
        dtype=plan.dtype,
        weight_bytes=weights.size_bytes,
        kv_bytes=kv.size_bytes,
        memory=exporter.kind.value,
        num_blocks=layout.num_blocks,
        load_s=round(clock.now() - started_s, 3),
    )
    return Storage(segments, store, plan, layout, config.run_dir.absolute() / HANDLE_SOCKET)


def plan_kv(config: MemdConfig, plan: LoadPlan, kind: SegmentKind) -> KvLayout:
    """As many blocks as fit into ``memd.kv_bytes``. ConfigError when they are too few to serve; DeviceError."""
    kv_bytes = config.kv_bytes or default_kv_bytes(plan, kind)
    model = ModelConfig.from_json(plan.model_config_json)

    def layout(num_blocks: int) -> KvLayout:
        return KvLayout(
            num_layers=model.num_layers,
            num_blocks=num_blocks,
            block_size=config.block_size,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=plan.kv_dtype,
        )

    block_bytes = layout(1).block_bytes
    num_blocks = kv_bytes // block_bytes
    if num_blocks < MIN_BLOCKS:
        need = f"{MIN_BLOCKS} blocks of {block_bytes} bytes need {MIN_BLOCKS * block_bytes}"
        raise ConfigError("memd.kv_bytes", f"{kv_bytes} bytes hold {num_blocks} KV blocks; {need}")
    check_reserve(config, layout(num_blocks))
    if kind is SegmentKind.MEMFD:
        _check_memory(config, plan, layout(num_blocks))
    return layout(num_blocks)


def check_reserve(config: MemdConfig, layout: KvLayout) -> None:
    """ConfigError when ``memd.reserve_blocks`` is all that there is."""
    if config.reserve_blocks >= layout.num_blocks:
        raise ConfigError(
            "memd.reserve_blocks", f"{config.reserve_blocks} of {layout.num_blocks} blocks leave none to prompts"
        )


def _check_memory(config: MemdConfig, plan: LoadPlan, layout: KvLayout) -> None:
    """DeviceError when the machine has less than will be taken of it: a memfd alone takes nothing when it is made."""
    weight_bytes = WeightManifest.from_json(plan.manifest_json).total_bytes
    kv_bytes = layout.total_bytes if config.touch_kv else 0
    if weight_bytes + kv_bytes > plan.free_bytes:
        weights, kv, free = (f"{size >> 20} MiB" for size in (weight_bytes, kv_bytes, plan.free_bytes))
        raise DeviceError(
            f"weights ({weights}) and KV ({kv}) need more than the {free} that are available: free memory, "
            "or lower memd.kv_bytes"
        )


def default_kv_bytes(plan: LoadPlan, kind: SegmentKind) -> int:
    """Where ``memd.kv_bytes`` is 0: little of the machine's memory, but of a GPU nearly all that the weights leave.

    The rest of a GPU is the phases' own: contexts, captured graphs, a step's activations.
    """
    if kind is SegmentKind.MEMFD:
        return HOST_KV_BYTES
    weight_bytes = WeightManifest.from_json(plan.manifest_json).total_bytes
    return max(0, int(plan.free_bytes * DEVICE_SHARE) - weight_bytes)


def _make_segments(
    exporter: MemoryExporter, plan: LoadPlan, layout: KvLayout
) -> tuple[ExportedSegment, ExportedSegment]:
    weights = exporter.create("weights", WeightManifest.from_json(plan.manifest_json).total_bytes)
    return weights, exporter.create("kv", layout.total_bytes)


def _new_ledger(segment: ExportedSegment, layout: KvLayout) -> Ledger:
    buffer = mmap.mmap(segment.fd, segment.size_bytes)
    return Ledger.create(buffer, num_blocks=layout.num_blocks, block_size=layout.block_size, epoch=secrets.randbits(63))


def facts_of(config: MemdConfig, description: Description, segments: Segments) -> StorageFacts:
    """What `description` says of the storage, and `config` of how it is shared out."""
    plan, layout = description.plan, description.kv_layout
    fingerprint = Fingerprint(
        model_digest=plan.digest,
        dtype=plan.dtype,
        kv_dtype=plan.kv_dtype,
        layout=LAYOUT,
        block_size=layout.block_size,
        num_blocks=layout.num_blocks,
        version=__version__,
    )
    return StorageFacts(
        fingerprint=fingerprint,
        weight_bytes=segments.weights.size_bytes,
        kv_bytes=segments.kv.size_bytes,
        num_reserve_blocks=config.reserve_blocks,
        lease_ttl_s=config.lease_ttl_s,
        num_pinnable_blocks=int((layout.num_blocks - config.reserve_blocks) * config.pin_fraction),
        max_segment_blocks=int(layout.num_blocks * config.segment_fraction),
        wipe_between_tenants=config.wipe_between_tenants,
    )

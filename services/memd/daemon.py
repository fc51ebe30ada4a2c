"""memd from an empty start to storage that phases attach to."""

import mmap
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.memd.loader_protocol import LoadPlan
from services.memd.loading import Loader
from services.memd.store import LocalStore, StorageFacts
from tandem import __version__
from tandem.clock import Clock
from tandem.config.settings import MemdConfig
from tandem.device.memory import ExportedSegment, MemoryExporter
from tandem.errors import ConfigError, NotReadyError
from tandem.kv.layout import LAYOUT, KvLayout
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.model.config import ModelConfig, WeightManifest
from tandem.types import Fingerprint

MIN_BLOCKS = 8
HANDLE_SOCKET = "memd.fd.sock"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Segments:
    """What memd owns. Phases get the weights and the KV; the ledger stays here."""

    weights: ExportedSegment
    kv: ExportedSegment
    ledger: ExportedSegment


@dataclass(frozen=True, slots=True)
class Storage:
    """A loaded model's segments, described, and the store over their blocks."""

    segments: Segments
    store: LocalStore
    plan: LoadPlan
    kv_layout: KvLayout
    handle_socket: Path


class Daemon:
    """Has storage once the model is loaded."""

    def __init__(self) -> None:
        self._storage: Storage | None = None

    @property
    def storage(self) -> Storage:
        """NotReadyError while the model is loading."""
        if self._storage is None:
            raise NotReadyError("memd is loading the model")
        return self._storage

    def ready(self, storage: Storage) -> None:
        """Phases may attach from now on."""
        self._storage = storage


async def load_storage(
    config: MemdConfig, exporter: MemoryExporter, clock: Clock, loader: Callable[[MemdConfig], Loader] = Loader
) -> Storage:
    """Loads the model and makes every segment. ModelError, ConfigError (``memd.kv_bytes``), DeviceError."""
    started_s = clock.now()
    async with loader(config) as child:
        plan = await child.plan()
        layout = plan_kv(config, plan)
        manifest = WeightManifest.from_json(plan.manifest_json)
        segments = Segments(
            weights=exporter.create("weights", manifest.total_bytes),
            kv=exporter.create("kv", layout.total_bytes),
            ledger=exporter.create("ledger", ledger_bytes(layout.num_blocks)),
        )
        await child.fill(segments.weights)
    segments.weights.seal()
    store = LocalStore(_new_ledger(segments.ledger, layout), _facts(config, plan, layout, segments), clock)
    _log.info(
        "model.loaded",
        model=plan.model_name,
        digest=plan.digest,
        dtype=plan.dtype,
        weight_bytes=segments.weights.size_bytes,
        kv_bytes=segments.kv.size_bytes,
        num_blocks=layout.num_blocks,
        load_s=round(clock.now() - started_s, 3),
    )
    return Storage(segments, store, plan, layout, config.run_dir.absolute() / HANDLE_SOCKET)


def plan_kv(config: MemdConfig, plan: LoadPlan) -> KvLayout:
    """As many blocks as fit into ``memd.kv_bytes``. ConfigError when they are too few to serve."""
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
    num_blocks = config.kv_bytes // block_bytes
    if num_blocks < MIN_BLOCKS:
        need = f"{MIN_BLOCKS} blocks of {block_bytes} bytes need {MIN_BLOCKS * block_bytes}"
        raise ConfigError("memd.kv_bytes", f"{config.kv_bytes} bytes hold {num_blocks} KV blocks; {need}")
    if config.reserve_blocks >= num_blocks:
        raise ConfigError(
            "memd.reserve_blocks", f"{config.reserve_blocks} of {num_blocks} blocks leave none to prompts"
        )
    return layout(num_blocks)


def _new_ledger(segment: ExportedSegment, layout: KvLayout) -> Ledger:
    buffer = mmap.mmap(segment.fd, segment.size_bytes)
    return Ledger.create(buffer, num_blocks=layout.num_blocks, block_size=layout.block_size, epoch=secrets.randbits(63))


def _facts(config: MemdConfig, plan: LoadPlan, layout: KvLayout, segments: Segments) -> StorageFacts:
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
    )

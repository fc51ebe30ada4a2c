"""memd without a model: its store, and its servers in this process, over small segments."""

import mmap
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from services.memd.daemon import HANDLE_SOCKET, Daemon, Segments, Storage
from services.memd.description import Description, write_description
from services.memd.handles import HandleServer
from services.memd.loader_protocol import LoadPlan
from services.memd.service import SERVICE_NAMES, add_to_server
from services.memd.store import LocalStore, StorageFacts
from tandem.clock import ManualClock
from tandem.device.cpu.memory import MemfdExporter
from tandem.kv.layout import KvLayout
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.model.config import ModelConfig, TensorPlace, WeightManifest
from tandem.rpc.server import ServiceHost
from tandem.types import Fingerprint

NUM_BLOCKS = 16
BLOCK_SIZE = 4
NUM_RESERVE_BLOCKS = 2
NUM_PINNABLE_BLOCKS = 4
MAX_SEGMENT_BLOCKS = 4
TTL_S = 30.0
FINGERPRINT = Fingerprint("digest", "bfloat16", "bfloat16", "layout", BLOCK_SIZE, NUM_BLOCKS, "1.0")
LAYOUT = KvLayout(2, NUM_BLOCKS, BLOCK_SIZE, 1, 8, "bfloat16")
MANIFEST = WeightManifest("bfloat16", 4096, {"embed": TensorPlace((8, 16), 0), "norm": TensorPlace((16,), 256)})
CONFIG = ModelConfig(
    family="llama",
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    vocab_size=8,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
)
PLAN = LoadPlan("tiny", CONFIG.to_json(), MANIFEST.to_json(), "digest", "bfloat16", "bfloat16", 1 << 30)


@dataclass
class LocalMemd:
    """What of memd runs in this process."""

    storage: Storage
    ledger: Ledger
    clock: ManualClock
    daemon: Daemon
    address: str

    @property
    def store(self) -> LocalStore:
        """memd's own."""
        return self.storage.store

    def restart(self) -> None:
        """Ends every attachment, as memd's end does, and goes on over the same ledger."""
        self.store.close()
        store = LocalStore(Ledger.open(map_ledger(self.storage.segments)), make_facts(), self.clock)
        self.storage = replace(self.storage, store=store)
        self.daemon.ready(self.storage)


def make_facts() -> StorageFacts:
    """Of the storage that `make_storage` makes."""
    return StorageFacts(
        FINGERPRINT,
        MANIFEST.total_bytes,
        LAYOUT.total_bytes,
        NUM_RESERVE_BLOCKS,
        TTL_S,
        NUM_PINNABLE_BLOCKS,
        MAX_SEGMENT_BLOCKS,
    )


def make_storage(run_dir: Path, clock: ManualClock) -> tuple[Storage, Ledger]:
    """Segments of a model that nobody computes with, and an empty pool."""
    exporter = MemfdExporter()
    weights = exporter.create("weights", MANIFEST.total_bytes)
    weights.seal()
    kv = exporter.create("kv", LAYOUT.total_bytes)
    description = write_description(Description({}, PLAN, LAYOUT))
    segments = Segments(weights, kv, exporter.create("ledger", ledger_bytes(NUM_BLOCKS, BLOCK_SIZE)), description)
    ledger = Ledger.create(map_ledger(segments), num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, epoch=5)
    store = LocalStore(ledger, make_facts(), clock)
    return Storage(segments, store, PLAN, LAYOUT, run_dir / HANDLE_SOCKET), ledger


def map_ledger(segments: Segments) -> mmap.mmap:
    """The ledger's segment, writable."""
    return mmap.mmap(segments.ledger.fd, segments.ledger.size_bytes)


@asynccontextmanager
async def local_memd(*, loaded: bool = True) -> AsyncIterator[LocalMemd]:
    """Real servers over sockets in a directory of their own; `loaded`: as when the model is there."""
    with tempfile.TemporaryDirectory(prefix="tdm") as name:
        clock = ManualClock(100.0)
        storage, ledger = make_storage(Path(name), clock)
        daemon = Daemon()
        if loaded:
            daemon.ready(storage)
        address = f"unix:{name}/memd.sock"
        host = ServiceHost(SERVICE_NAMES, [address])
        add_to_server(daemon, host.server)
        handles = HandleServer(
            storage.handle_socket, (storage.segments.weights, storage.segments.kv), storage.store.admit
        )
        await host.start()
        handles.start()
        memd = LocalMemd(storage, ledger, clock, daemon, address)
        try:
            yield memd
        finally:
            memd.store.close()
            await handles.close()
            await host.stop(0)
            for segment in storage.segments.all:
                os.close(segment.fd)

"""The gateway's parts, joined: the same in the process and in tests, which differ in the world around them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.gateway.building import SegmentBuilder
from services.gateway.chat import ChatTemplate
from services.gateway.frontend import Draws, Frontend
from services.gateway.leases import LeaseKeeper
from services.gateway.load import Bounds
from services.gateway.orchestrator import Orchestrator
from services.gateway.peers import Peers
from services.gateway.pool import PEER as MEMD
from services.gateway.pool import PoolWatch
from services.gateway.ports import ObservationSink, PhasePort, Timers
from services.gateway.prospects import Promise
from services.gateway.queue import SequenceQueue
from services.gateway.quotas import TenantQuotas
from services.gateway.reporting import Reporter
from services.gateway.requests import Request, Sequence
from services.gateway.status import StatusView
from services.gateway.tenants import OpenDirectory, TenantDirectory
from tandem.clock import Clock
from tandem.config.settings import GatewayConfig
from tandem.kv.store import MemoryStore
from tandem.model.metadata import ModelMetadata
from tandem.scheduler.dispatch import Dispatcher
from tandem.scheduler.policies import PolicyOptions, make_policy
from tandem.scheduler.prefix_view import SentPrefixes
from tandem.telemetry.metrics import GatewayMetrics
from tandem.types import Phase

MS = 1e3


@dataclass(frozen=True, slots=True)
class World:
    """All that the gateway's parts are handed from outside."""

    phases: Mapping[Phase, PhasePort]
    store: MemoryStore
    observations: ObservationSink
    metrics: GatewayMetrics
    clock: Clock
    unix_ns: Callable[[], int]
    timers: Timers
    draw_lease_id: Callable[[], int]  # 63 bits
    draws: Draws
    tenants: TenantDirectory = field(default_factory=OpenDirectory)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that somebody outside calls."""

    orchestrator: Orchestrator
    frontend: Frontend
    leases: LeaseKeeper
    pool: PoolWatch
    status: StatusView


def assemble(config: GatewayConfig, model: ModelMetadata, world: World, on_ready: Callable[[bool], None]) -> Gateway:
    """`on_ready` hears whenever it changes whether both phases and memd are connected."""
    peers = Peers([*Phase, MEMD], on_ready)
    reporter = Reporter(world.clock, world.metrics, world.observations)
    leases = LeaseKeeper(world.store, world.draw_lease_id)
    directory = world.tenants
    quotas = TenantQuotas.create(directory.quotas, lambda: pool.pool.block_size, world.clock)
    dispatcher = _dispatcher(config, lambda: pool.pool.num_blocks)
    queue = SequenceQueue(dispatcher, quotas, lambda: pool.pool.block_size, world.unix_ns)

    def note_memd(connected: bool) -> None:
        peers.set(MEMD, connected)
        if not connected:
            queue.forget_cache()

    pool = PoolWatch(world.store, note_memd)
    builder = _builder(model, world, queue, lambda request: orchestrator.admit_build(request))  # noqa: PLW0108 - made below
    orchestrator = Orchestrator(
        ports=world.phases,
        leases=leases,
        queue=queue,
        bounds=_bounds(config, directory),
        peers=peers,
        reporter=reporter,
        clock=world.clock,
        unix_ns=world.unix_ns,
        timers=world.timers,
        note_segments=builder.note,
        one_process=config.mode == "colocated",
    )
    frontend = Frontend(
        config=config,
        model=model,
        template=ChatTemplate(model.chat_template, _special_tokens(model), datetime.now),
        pool=pool,
        orchestrator=orchestrator,
        reporter=reporter,
        tenants=directory,
        quotas=quotas,
        draws=world.draws,
        clock=world.clock,
        unix_ns=world.unix_ns,
    )
    return Gateway(orchestrator, frontend, leases, pool, StatusView(orchestrator, reporter, peers))


def _builder(
    model: ModelMetadata, world: World, queue: SequenceQueue, admit: Callable[[Request], None]
) -> SegmentBuilder:
    return SegmentBuilder(
        admit=admit,
        note_entry=queue.note_entry,
        tokenizer=model.tokenizer,
        draw_request_id=world.draws.request_id,
        clock=world.clock,
        unix_ns=world.unix_ns,
    )


def _dispatcher(config: GatewayConfig, num_blocks: Callable[[], int]) -> Dispatcher[Sequence]:
    policy = make_policy(config.queue_policy, PolicyOptions(config.max_wait_s))
    return Dispatcher(policy, SentPrefixes(num_blocks), config.prefill_backlog_tokens)


def _bounds(config: GatewayConfig, tenants: TenantDirectory) -> Bounds:
    return Bounds(
        max_waiting=config.max_waiting,
        max_running=config.max_running,
        max_waiting_tokens=config.max_waiting_tokens,
        max_waiting_of=lambda tenant: tenants.quotas(tenant).max_waiting,
        promise=Promise(config.admit_ttft_ms / MS, config.admit_tpot_ms / MS),
    )


def _special_tokens(model: ModelMetadata) -> dict[str, str]:
    """Under the names that templates know them by."""
    named = {"bos_token": model.tokenizer.bos_token, "eos_token": model.tokenizer.eos_token}
    return {name: token for name, token in named.items() if token is not None}

"""The gateway's parts, joined: the same in the process and in tests, which differ in the world around them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from services.gateway.chat import ChatTemplate
from services.gateway.frontend import Draws, Frontend
from services.gateway.leases import LeaseKeeper
from services.gateway.load import Bounds
from services.gateway.orchestrator import Orchestrator
from services.gateway.peers import Peers
from services.gateway.pool import PEER as MEMD
from services.gateway.pool import PoolWatch
from services.gateway.ports import ObservationSink, PhasePort, Timers
from services.gateway.reporting import Reporter
from services.gateway.status import StatusView
from tandem.clock import Clock
from tandem.config.settings import GatewayConfig
from tandem.kv.store import MemoryStore
from tandem.model.metadata import ModelMetadata
from tandem.scheduler.waiting import FirstComeFirstServed
from tandem.telemetry.metrics import GatewayMetrics
from tandem.types import Phase


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
    pool = PoolWatch(world.store, lambda connected: peers.set(MEMD, connected))
    orchestrator = Orchestrator(
        ports=world.phases,
        leases=leases,
        policy=FirstComeFirstServed(),
        bounds=Bounds(config.max_waiting, config.max_running),
        peers=peers,
        reporter=reporter,
        clock=world.clock,
        unix_ns=world.unix_ns,
        timers=world.timers,
    )
    frontend = Frontend(
        config=config,
        model=model,
        template=ChatTemplate(model.chat_template, _special_tokens(model), datetime.now),
        pool=pool,
        orchestrator=orchestrator,
        reporter=reporter,
        draws=world.draws,
        clock=world.clock,
        unix_ns=world.unix_ns,
    )
    return Gateway(orchestrator, frontend, leases, pool, StatusView(orchestrator, reporter, peers))


def _special_tokens(model: ModelMetadata) -> dict[str, str]:
    """Under the names that templates know them by."""
    named = {"bos_token": model.tokenizer.bos_token, "eos_token": model.tokenizer.eos_token}
    return {name: token for name, token in named.items() if token is not None}

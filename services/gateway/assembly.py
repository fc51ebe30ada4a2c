"""The gateway's parts, joined: the same in the process and in tests, which differ in the world around them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from services.gateway.addresses import ReplicaAddress
from services.gateway.chat import ChatTemplate
from services.gateway.deadlines import Deadlines
from services.gateway.frontend import Draws, Frontend
from services.gateway.load import Bounds
from services.gateway.patience import Patience
from services.gateway.places import WaitingPlaces
from services.gateway.ports import Timers
from services.gateway.prospects import Outlook, Promise
from services.gateway.quotas import TenantQuotas
from services.gateway.reception import Reception
from services.gateway.replica import Links, Replica, Shared, make_replica
from services.gateway.replicas import ReplicaSet, Surroundings
from services.gateway.reporting import DoorReporter, Throughput
from services.gateway.requests import Request
from services.gateway.routing_report import RoutingReporter
from services.gateway.status import StatusView
from services.gateway.tenants import OpenDirectory, TenantDirectory
from tandem.clock import Clock
from tandem.config.settings import GatewayConfig
from tandem.model.metadata import ModelMetadata
from tandem.routing.fleet import Fleet
from tandem.routing.routers import make_router
from tandem.telemetry.metrics import GatewayMetrics

MS = 1e3


@dataclass(frozen=True, slots=True)
class World:
    """All that the gateway's parts are handed from outside."""

    replicas: Sequence[ReplicaAddress]  # that are there from the beginning
    connect: Callable[[ReplicaAddress], Links]
    metrics: GatewayMetrics
    clock: Clock
    unix_ns: Callable[[], int]
    timers: Timers
    wake: Callable[[Callable[[], None]], object]  # calls back soon
    draw_lease_id: Callable[[], int]  # 63 bits
    draws: Draws
    tenants: TenantDirectory = field(default_factory=OpenDirectory)
    opened: Callable[[Replica], object] = lambda _replica: None  # it is to be connected
    closed: Callable[[Replica], object] = lambda _replica: None  # nothing more is asked of it


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that somebody outside calls."""

    replicas: ReplicaSet
    reception: Reception
    frontend: Frontend
    status: StatusView


def assemble(config: GatewayConfig, model: ModelMetadata, world: World, on_ready: Callable[[bool], None]) -> Gateway:
    """`on_ready` hears whenever it changes whether any replica is connected."""
    directory, clock = world.tenants, world.clock
    throughput = Throughput.create(clock)
    quotas = TenantQuotas.create(directory.quotas, lambda: replicas.pool.block_size, clock)
    deadlines = Deadlines(clock, world.timers, lambda request, error: reception.end(request, error))  # noqa: PLW0108
    patience = Patience(clock, world.timers, config.refuse_after_s, lambda request: reception.refuse_overdue(request))  # noqa: PLW0108
    bounds = _bounds(config, directory)
    door = DoorReporter(world.metrics)
    routing = RoutingReporter(world.metrics.replicas, clock, world.unix_ns)

    def shared() -> Shared:
        return Shared(
            config=config,
            tokenizer=model.tokenizer,
            bounds=bounds,
            quotas=quotas,
            deadlines=deadlines,
            watch=reception,
            throughput=throughput,
            metrics=world.metrics,
            routing=routing,
            clock=clock,
            unix_ns=world.unix_ns,
            draw_lease_id=world.draw_lease_id,
            draw_request_id=world.draws.request_id,
            wake=world.wake,
        )

    around = Surroundings(
        make=lambda address, notices: make_replica(address, world.connect(address), shared(), notices),
        opened=world.opened,
        closed=world.closed,
        on_ready=on_ready,
    )
    replicas = ReplicaSet(_fleet(config, world), around, routing, clock, config.replica_lost_s)
    outlook = Outlook(lambda: [replica.prospects for replica in replicas.serving])
    places = WaitingPlaces(bounds, throughput.requests, outlook)
    reception = Reception(replicas, places, deadlines=deadlines, patience=patience, reporter=door)
    frontend = _frontend(config, model, world, replicas=replicas, reception=reception, reporter=door, quotas=quotas)
    replicas.follow(world.replicas)
    return Gateway(replicas, reception, frontend, StatusView(replicas, throughput))


def _frontend(
    config: GatewayConfig,
    model: ModelMetadata,
    world: World,
    *,
    replicas: ReplicaSet,
    reception: Reception,
    reporter: DoorReporter,
    quotas: TenantQuotas,
) -> Frontend:
    return Frontend(
        config=config,
        model=model,
        template=ChatTemplate(model.chat_template, _special_tokens(model), datetime.now),
        replicas=replicas,
        reception=reception,
        reporter=reporter,
        tenants=world.tenants,
        quotas=quotas,
        draws=world.draws,
        clock=world.clock,
        unix_ns=world.unix_ns,
    )


def _fleet(config: GatewayConfig, world: World) -> Fleet[Request]:
    return Fleet(make_router(config.router, world.draws.seed()), world.clock)


def _bounds(config: GatewayConfig, tenants: TenantDirectory) -> Bounds:
    return Bounds(
        max_waiting=config.max_waiting,
        max_running=config.max_running,
        max_waiting_tokens=config.max_waiting_tokens,
        refuse_after_s=config.refuse_after_s,
        max_waiting_of=lambda tenant: tenants.quotas(tenant).max_waiting,
        promise=Promise(config.admit_ttft_ms / MS, config.admit_tpot_ms / MS),
    )


def _special_tokens(model: ModelMetadata) -> dict[str, str]:
    """Under the names that templates know them by."""
    named = {"bos_token": model.tokenizer.bos_token, "eos_token": model.tokenizer.eos_token}
    return {name: token for name, token in named.items() if token is not None}

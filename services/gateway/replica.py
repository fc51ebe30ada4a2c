"""One replica's parts, joined: a memd with its phases, as the gateway has it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.gateway.addresses import ReplicaAddress
from services.gateway.building import SegmentBuilder
from services.gateway.deadlines import Deadlines
from services.gateway.leases import LeaseKeeper
from services.gateway.load import Bounds
from services.gateway.orchestrator import Orchestrator
from services.gateway.peers import Peers
from services.gateway.pool import PEER as MEMD
from services.gateway.pool import Pool, PoolWatch
from services.gateway.ports import ObservationSink, PhasePort, RequestWatch
from services.gateway.prospects import Prospects
from services.gateway.queue import SequenceQueue
from services.gateway.quotas import TenantQuotas
from services.gateway.reporting import Reporter, Throughput
from services.gateway.requests import Request, Sequence
from services.gateway.routing_report import RoutingReporter
from tandem.clock import Clock
from tandem.config.settings import GatewayConfig
from tandem.kv.cache_store import CacheNews, CacheStore
from tandem.kv.store import MemoryStore
from tandem.model.tokenizer import Tokenizer
from tandem.routing.published import PublishedBlocks, PublishedPrefixes
from tandem.scheduler.dispatch import Dispatcher
from tandem.scheduler.policies import PolicyOptions, make_policy
from tandem.scheduler.prefix_view import PrefixView
from tandem.telemetry.metrics import GatewayMetrics
from tandem.types import Phase


class Links(Protocol):
    """The connections to a replica's services."""

    @property
    def phases(self) -> Mapping[Phase, PhasePort]:
        """What sequences are sent over."""
        ...

    @property
    def store(self) -> MemoryStore:
        """memd's leases."""
        ...

    @property
    def cache(self) -> CacheStore:
        """memd's cache."""
        ...

    @property
    def observations(self) -> ObservationSink:
        """To its controller."""
        ...


@dataclass(frozen=True, slots=True)
class Shared:
    """What the replicas of a gateway have in common."""

    config: GatewayConfig
    tokenizer: Tokenizer
    bounds: Bounds
    quotas: TenantQuotas
    deadlines: Deadlines
    watch: RequestWatch
    throughput: Throughput
    metrics: GatewayMetrics
    routing: RoutingReporter
    clock: Clock
    unix_ns: Callable[[], int]
    draw_lease_id: Callable[[], int]
    draw_request_id: Callable[[], str]
    wake: Callable[[Callable[[], None]], object]  # calls back soon


@dataclass(frozen=True, slots=True)
class Notices:
    """What the set of replicas hears of one."""

    accepts: Callable[[Pool], bool]  # whether a pool has the contents of the others
    changed: Callable[[], None]  # memd has answered, or a peer has come or gone


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """The parts that somebody outside calls."""

    address: ReplicaAddress
    links: Links
    orchestrator: Orchestrator
    leases: LeaseKeeper
    pool: PoolWatch
    peers: Peers
    prospects: Prospects
    published: PublishedBlocks
    hear: Callable[[CacheNews], None]  # of what is published

    @property
    def name(self) -> str:
        """Among the gateway's replicas its alone."""
        return self.address.name

    @property
    def is_ready(self) -> bool:
        """Whether memd and both phases are connected."""
        return self.peers.all_connected


def make_replica(address: ReplicaAddress, links: Links, shared: Shared, notices: Notices) -> Replica:
    """Nothing of it runs yet."""
    config, clock, unix_ns = shared.config, shared.clock, shared.unix_ns
    peers = Peers(address.name, [*Phase, MEMD], notices.changed)
    leases = LeaseKeeper(links.store, shared.draw_lease_id)
    prospects = Prospects(shared.bounds.promise, shared.bounds.max_running, clock)

    def note_memd(connected: bool) -> None:
        if not connected:
            queue.forget_entries()
        peers.set(MEMD, connected)

    def hear(news: CacheNews) -> None:
        queue.hear(news)
        shared.routing.heard(address.name, news, len(published.keys))

    pool = PoolWatch(links.store, note_memd, notices.accepts)
    published = PublishedBlocks(lambda: pool.pool.num_all_blocks)
    queue = _queue(shared, pool, published, lambda: shared.wake(orchestrator.dispatch))
    builder = _builder(shared, lambda request: orchestrator.admit_build(request), queue)  # noqa: PLW0108 - made below
    orchestrator = Orchestrator(
        ports=links.phases,
        leases=leases,
        queue=queue,
        prospects=prospects,
        peers=peers,
        reporter=Reporter(clock, shared.metrics, links.observations, shared.throughput),
        watch=shared.watch,
        deadlines=shared.deadlines,
        clock=clock,
        unix_ns=unix_ns,
        note_segments=builder.note,
        one_process=config.mode == "colocated",
    )
    return Replica(address, links, orchestrator, leases, pool, peers, prospects, published, hear)


def _queue(
    shared: Shared, pool: PoolWatch, published: PublishedBlocks, on_entered: Callable[[], object]
) -> SequenceQueue:
    view = PublishedPrefixes(lambda: pool.pool.num_blocks, published)
    dispatcher = _dispatcher(shared.config, view)
    return SequenceQueue(dispatcher, shared.quotas, lambda: pool.pool.block_size, shared.unix_ns, on_entered)


def _builder(shared: Shared, admit: Callable[[Request], None], queue: SequenceQueue) -> SegmentBuilder:
    return SegmentBuilder(
        admit=admit,
        note_entry=queue.note_entry,
        tokenizer=shared.tokenizer,
        draw_request_id=shared.draw_request_id,
        clock=shared.clock,
        unix_ns=shared.unix_ns,
    )


def _dispatcher(config: GatewayConfig, view: PrefixView) -> Dispatcher[Sequence]:
    policy = make_policy(config.queue_policy, PolicyOptions(config.max_wait_s))
    return Dispatcher(policy, view, config.prefill_backlog_tokens)

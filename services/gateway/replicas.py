"""The set of replicas: who there is, who is away, lost or leaving, and which of them a request goes to.

A replica that does not answer keeps its requests until it has been away for `lost_s` and others serve: then they go on
there, from their last tokens, which the gateway alone knows. One that is listed no more ends what it has, and one that
is listed again meanwhile is opened anew then.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from services.gateway.addresses import ReplicaAddress
from services.gateway.load import Load
from services.gateway.pool import Pool
from services.gateway.prompts import prompt_of, unkeyed
from services.gateway.replica import Notices, Replica
from services.gateway.requests import Request
from services.gateway.routing_report import RoutingReporter
from tandem.clock import Clock
from tandem.errors import NotReadyError
from tandem.routing.fleet import Fleet
from tandem.routing.membership import Membership, ReplicaState

NO_LOAD = Load(0, 0, 0)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the set needs of the process."""

    make: Callable[[ReplicaAddress, Notices], Replica]
    opened: Callable[[Replica], object]  # it is to be connected
    closed: Callable[[Replica], object]  # nothing more is asked of it
    on_ready: Callable[[bool], object]  # whenever it changes whether any replica can serve


class ReplicaSet:
    """Owns the replicas from `follow` on."""

    def __init__(
        self, fleet: Fleet[Request], around: Surroundings, reporter: RoutingReporter, clock: Clock, lost_s: float
    ) -> None:
        self._fleet = fleet
        self._around = around
        self._reporter = reporter
        self._clock = clock
        self._lost_s = lost_s
        self._listed: dict[str, ReplicaAddress] = {}
        self._replicas: dict[str, Replica] = {}
        self._homes: dict[Request, Replica] = {}
        self._away_since: dict[str, float] = {}  # those that are not ready
        self._lost: set[str] = set()  # they join again when they are ready
        self._refused: set[str] = set()
        self._is_ready = False
        self._membership: Membership | None = None  # that `_serving` are of
        self._serving: tuple[Replica, ...] = ()

    def __iter__(self) -> Iterator[Replica]:
        return iter(tuple(self._replicas.values()))

    @property
    def is_serving(self) -> bool:
        """Whether a request may be routed."""
        return bool(self._fleet.membership.serving)

    @property
    def gives_turns(self) -> bool:
        """Whether requests that wait are sent to a phase, in one replica at least."""
        return any(replica.orchestrator.gives_turns for replica in self._replicas.values())

    @property
    def serving(self) -> tuple[Replica, ...]:
        """Those that get requests."""
        membership = self._fleet.membership
        if membership is not self._membership:
            self._membership = membership
            self._serving = tuple(self._replicas[name] for name in membership.serving)
        return self._serving

    @property
    def load(self) -> Load:
        """Of all of them."""
        return sum((replica.orchestrator.load for replica in self), NO_LOAD)

    @property
    def pool(self) -> Pool:
        """What a request may count on wherever it goes. NotReadyError before any memd was there."""
        pools = [replica.pool.pool for replica in self.serving]
        if not pools:
            raise NotReadyError("no memory daemon has been connected yet; try again soon")
        return pools[0] if len(pools) == 1 else replace(pools[0], max_tokens=min(pool.max_tokens for pool in pools))

    def state(self, replica: Replica) -> ReplicaState:
        """GONE: not joined yet, or lost."""
        return self._fleet.membership.state(replica.name)

    # Who there is

    def follow(self, addresses: Sequence[ReplicaAddress]) -> None:
        """These are the replicas from now on."""
        self._listed = {address.name: address for address in addresses}
        self.check()

    def check(self) -> None:
        """Carries out what time and the list ask for: to be called again and again."""
        for replica in self:
            leaves = replica.name not in self._listed or self.state(replica) is ReplicaState.LEAVING
            if self._is_lost(replica):
                self._lose(replica)
            if leaves:
                self._leave(replica)
        for address in self._listed.values():
            if address.name not in self._replicas:
                self._open(address)

    def home(self, request: Request) -> Replica | None:
        """Where it runs."""
        return self._homes.get(request)

    # Requests

    def route(self, request: Request) -> Replica:
        """Its home from now on. NotReadyError: nobody serves."""
        block_size, serving = self.pool.block_size, self.serving
        home = self._homes[request] = (
            self._choose(request, block_size) if len(serving) > 1 else self._place(request, serving[0], block_size)
        )
        return home

    def _place(self, request: Request, only: Replica, block_size: int) -> Replica:
        self._fleet.place(request, only.name, unkeyed(request, block_size))
        self._reporter.routed(request, only.name, None)
        return only

    def _choose(self, request: Request, block_size: int) -> Replica:
        prospect = self._fleet.route(request, prompt_of(request, block_size))
        self._reporter.routed(request, prospect.replica_id, prospect.ttft_s)
        _log.info(
            "request.routed",
            request_id=request.request_id,
            replica=prospect.replica_id,
            num_exact_tokens=prospect.num_exact_tokens,
            num_segment_tokens=prospect.num_segment_tokens,
            num_computed_tokens=prospect.num_computed_tokens,
            wait_ms=round(prospect.wait_s * 1e3, 1),
        )
        return self._replicas[prospect.replica_id]

    def prefilled(self, request: Request, num_computed_tokens: int) -> None:
        """It has its first token; nothing happens when it was not routed."""
        if request in self._homes:
            self._fleet.prefilled(request, num_computed_tokens)
            self._reporter.prefilled(request, num_computed_tokens)

    def ended(self, request: Request) -> None:
        """It has; nothing happens when it was not routed."""
        if self._homes.pop(request, None) is not None:
            self._fleet.end(request)
            self._reporter.ended(request)

    # Replicas

    def _open(self, address: ReplicaAddress) -> None:
        notices = Notices(partial(self._accepts, address.name), partial(self._notice, address.name))
        replica = self._replicas[address.name] = self._around.make(address, notices)
        self._away_since[address.name] = self._clock.now()
        self._reporter.opened(address.name)
        _log.info("replica.opened", replica=address.name)
        self._around.opened(replica)

    def _accepts(self, name: str, pool: Pool) -> bool:
        """A cache and an answer are worth as much in one as in the other only where all have the same contents."""
        others = [replica.pool.pool for replica in self.serving if replica.name != name]
        if not others or pool.is_like(others[0]):
            self._refused.discard(name)
            return True
        if name not in self._refused:
            self._refused.add(name)
            _log.error("replica.refused", replica=name, **pool.differences(others[0]))
        return False

    def _notice(self, name: str) -> None:
        replica = self._replicas.get(name)
        if replica is None:
            return
        if replica.is_ready:
            self._away_since.pop(name, None)
        else:
            self._away_since.setdefault(name, self._clock.now())
        self._join(replica)
        (self._fleet.note_back if replica.is_ready else self._fleet.note_away)(name)
        self._reporter.ready(name, replica.is_ready)
        self._publish_readiness()

    def _join(self, replica: Replica) -> None:
        """When its memd is known; a lost one when it is ready: it may have lost more than its connections."""
        if self.state(replica) is not ReplicaState.GONE or replica.name not in self._listed:
            return
        if replica.is_ready or (replica.pool.is_known and replica.name not in self._lost):
            self._lost.discard(replica.name)
            self._fleet.join(replica.name, lambda: replica.pool.pool.num_blocks, replica.published)
            _log.info("replica.joined", replica=replica.name)

    def _leave(self, replica: Replica) -> None:
        if self.state(replica) is ReplicaState.JOINED:
            self._fleet.leave(replica.name)
            replica.orchestrator.build_no_more()
            _log.info("replica.leaving", replica=replica.name, num_requests=len(self._fleet.items(replica.name)))
            self._publish_readiness()
        if replica.orchestrator.is_quiet or self.state(replica) is ReplicaState.GONE:
            self._close(replica)

    def _is_lost(self, replica: Replica) -> bool:
        since_s = self._away_since.get(replica.name)
        if since_s is None or self.state(replica) is ReplicaState.GONE:
            return False
        return self._clock.now() - since_s >= self._lost_s and any(other.is_ready for other in self.serving)

    def _lose(self, replica: Replica) -> None:
        """What it had goes on in others; whatever of it a phase still has is given back when that says so."""
        self._fleet.lose(replica.name)
        self._lost.add(replica.name)
        requests = replica.orchestrator.withdraw()
        _log.warning("replica.lost", replica=replica.name, num_requests=len(requests))
        for request in requests:
            self.route(request).orchestrator.take_on(request)

    def _close(self, replica: Replica) -> None:
        if self.state(replica) is not ReplicaState.GONE:
            self._fleet.lose(replica.name)
        del self._replicas[replica.name]
        for names in (self._lost, self._refused):
            names.discard(replica.name)
        self._fleet.note_back(replica.name)
        self._away_since.pop(replica.name, None)
        self._reporter.closed(replica.name)
        _log.info("replica.closed", replica=replica.name)
        self._around.closed(replica)

    def _publish_readiness(self) -> None:
        is_ready = any(replica.is_ready for replica in self.serving)
        if is_ready != self._is_ready:
            self._is_ready = is_ready
            _log.info("gateway.ready" if is_ready else "gateway.not_ready")
            self._around.on_ready(is_ready)

"""A gateway over several replicas in a world of fakes: each site has its own memd and phases."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from prometheus_client import CollectorRegistry

from services.gateway.addresses import ReplicaAddress, in_directory
from services.gateway.assembly import Gateway, World, assemble
from services.gateway.frontend import Call, Draws
from services.gateway.replica import Replica
from services.gateway.requests import Request
from services.gateway.tenants import OpenDirectory, TenantDirectory
from services.gateway.validation import SamplingFields
from tandem.clock import ManualClock
from tandem.config.settings import GatewayConfig
from tandem.telemetry.metrics import GatewayMetrics
from tandem.types import (
    DecodeResult,
    FinishReason,
    Phase,
    Prefilled,
    PrefillResult,
    SequenceDropped,
    SequenceOutput,
    SequenceSpec,
)
from tandem.types import DropReason as Reason
from tests.support.gateway_world import FakeLinks, FakePhase, FakeStore, FakeTimers, Observations, byte_model


class Site:
    """One replica's memd and phases, and what the gateway has of it while it is open."""

    def __init__(self, name: str, store: FakeStore) -> None:
        self.name = name
        self.store = store
        self.prefill, self.decode = FakePhase(store), FakePhase(store)
        self.observations = Observations()
        self.replica: Replica | None = None

    @property
    def held(self) -> list[str]:
        """Ids of the requests that its phases have."""
        return [spec.request_id for fake in (self.prefill, self.decode) for spec in fake.held.values()]

    @property
    def open(self) -> Replica:
        assert self.replica is not None, "it is not open"
        return self.replica

    async def up(self) -> None:
        """Everything connected."""
        self.store.away = False
        await self.open.pool.poll()
        for phase in Phase:
            self._phase(phase).connected = True
            self.open.orchestrator.phase_connected(phase)

    async def down(self) -> None:
        """The machine is gone."""
        self.store.away = True
        await self.open.pool.poll()
        for phase in Phase:
            self.lose(phase)

    def lose(self, phase: Phase) -> None:
        fake = self._phase(phase)
        fake.connected = False
        lost, fake.held = frozenset(fake.held), {}
        self.open.orchestrator.phase_lost(phase, lost)

    def prefilled(self, token: int, finish: FinishReason = FinishReason.NONE, **fields: Any) -> SequenceSpec:
        """The oldest that prefill has."""
        spec = self.prefill.held.pop(next(iter(self.prefill.held)))
        entry = Prefilled(SequenceOutput(spec.lease_id, token, None, finish), 1.0, 2.0, 0, **fields)
        self.open.orchestrator.phase_result(PrefillResult(prefilled=(entry,)))
        return spec

    def token(self, token: int, finish: FinishReason = FinishReason.NONE, lease_id: int = 0) -> None:
        """Of the oldest that decode has, or had."""
        lease_id = lease_id or next(iter(self.decode.held))
        if finish is not FinishReason.NONE:
            self.decode.held.pop(lease_id, None)
        self.open.orchestrator.phase_result(DecodeResult(outputs=(SequenceOutput(lease_id, token, None, finish),)))

    def obey_aborts(self) -> None:
        for phase in Phase:
            fake = self._phase(phase)
            dropped = tuple(SequenceDropped(each, Reason.ABORTED, "") for each in fake.aborted if each in fake.held)
            fake.held = {lease_id: spec for lease_id, spec in fake.held.items() if lease_id not in fake.aborted}
            fake.aborted.clear()
            result = PrefillResult(dropped=dropped) if phase is Phase.PREFILL else DecodeResult(dropped=dropped)
            self.open.orchestrator.phase_result(result)

    def _phase(self, phase: Phase) -> FakePhase:
        return self.prefill if phase is Phase.PREFILL else self.decode


@dataclass
class Sites:
    """A gateway; sites come to be when it opens them."""

    names: Sequence[str] = ("/a", "/b")
    settings: dict[str, Any] = field(default_factory=dict)
    tenants: TenantDirectory = field(default_factory=OpenDirectory)

    def __post_init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.timers = FakeTimers(self.clock)
        self.registry = CollectorRegistry()
        self.readiness: list[bool] = []
        self.closed: list[str] = []
        self._sites: dict[str, Site] = {}
        lease_ids, unix_ns = itertools.count(1), itertools.count(10)
        world = World(
            replicas=tuple(map(in_directory, self.names)),
            connect=self._connect,
            opened=self._opened,
            closed=lambda replica: self.closed.append(replica.name),
            metrics=GatewayMetrics.create(self.registry),
            clock=self.clock,
            unix_ns=lambda: next(unix_ns),
            timers=self.timers,
            wake=lambda callback: asyncio.get_running_loop().call_soon(callback),
            draw_lease_id=lambda: next(lease_ids),
            draws=Draws(seed=lambda: 4242, request_id=lambda: f"drawn-{next(unix_ns)}"),
            tenants=self.tenants,
        )
        config = GatewayConfig(**{"queue_policy": "fcfs", **self.settings})
        self.gateway: Gateway = assemble(config, byte_model(), world, self.readiness.append)

    def __getitem__(self, name: str) -> Site:
        return self._sites.setdefault(name, Site(name, FakeStore()))

    async def up(self) -> "Sites":
        for replica in self.gateway.replicas:
            await self[replica.name].up()
        return self

    async def request(self, text: str, request_id: str = "", tenant: str = "", **sampling: Any) -> Request:
        call = Call(request_id, SamplingFields(**{"max_tokens": 8, **sampling}), tenant=tenant)
        return await self.gateway.frontend.generate_text(call, text)

    def where(self, request: Request) -> Site:
        home = self.gateway.replicas.home(request)
        assert home is not None
        return self[home.name]

    def pass_time(self, seconds: float) -> None:
        self.timers.advance(seconds)
        self.gateway.replicas.check()

    def _connect(self, address: ReplicaAddress) -> FakeLinks:
        site = self[address.name]
        phases = {Phase.PREFILL: site.prefill, Phase.DECODE: site.decode}
        return FakeLinks(phases, cast("Any", site.store), cast("Any", None), site.observations)

    def _opened(self, replica: Replica) -> None:
        self[replica.name].replica = replica

"""A whole gateway in a world of fakes, and phases that follow a script."""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from prometheus_client import CollectorRegistry

from services.gateway.addresses import in_directory
from services.gateway.assembly import Gateway, World, assemble
from services.gateway.frontend import Call, Draws
from services.gateway.orchestrator import Orchestrator
from services.gateway.output import Piece
from services.gateway.replica import Replica
from services.gateway.requests import Request
from services.gateway.resumption import Resume
from services.gateway.reuse import ReuseFields
from services.gateway.tenants import OpenDirectory, TenantDirectory
from services.gateway.validation import SamplingFields
from tandem.clock import ManualClock
from tandem.config.settings import GatewayConfig
from tandem.model.metadata import ModelMetadata
from tandem.telemetry.metrics import GatewayMetrics
from tandem.types import (
    DecodeResult,
    DropReason,
    FinishReason,
    Phase,
    Prefilled,
    PrefillResult,
    SegmentOutcome,
    SequenceDropped,
    SequenceOutput,
    SequenceSpec,
    Span,
)
from tests.support.gateway_world import EOS, FakeLinks, FakePhase, FakeStore, FakeTimers, Observations, byte_model


@dataclass
class Rig:
    """A gateway in a fake world. Phases act through its methods, which tell the orchestrator as the links would."""

    config: GatewayConfig = field(default_factory=lambda: GatewayConfig(queue_policy="fcfs"))
    model: ModelMetadata = field(default_factory=byte_model)
    store: FakeStore = field(default_factory=FakeStore)
    tenants: Callable[[ManualClock], TenantDirectory] = lambda _clock: OpenDirectory()

    def __post_init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.timers = FakeTimers(self.clock)
        self.observations = Observations()
        self.prefill = FakePhase(self.store)
        self.decode = FakePhase(self.store)
        self.registry = CollectorRegistry()
        self.readiness: list[bool] = []
        lease_ids, unix_ns = itertools.count(1), itertools.count(10)
        phases = {Phase.PREFILL: self.prefill, Phase.DECODE: self.decode}
        world = World(
            replicas=(in_directory("/run"),),
            connect=lambda _address: FakeLinks(phases, cast("Any", self.store), cast("Any", None), self.observations),
            metrics=GatewayMetrics.create(self.registry),
            clock=self.clock,
            unix_ns=lambda: next(unix_ns),
            timers=self.timers,
            wake=lambda callback: asyncio.get_running_loop().call_soon(callback),
            draw_lease_id=lambda: next(lease_ids),
            draws=Draws(seed=lambda: 4242, request_id=lambda: f"drawn-{next(unix_ns)}"),
            tenants=self.tenants(self.clock),
        )
        self.gateway: Gateway = assemble(self.config, self.model, world, self.readiness.append)

    @property
    def replica(self) -> Replica:
        """The only one."""
        (replica,) = self.gateway.replicas
        return replica

    @property
    def orchestrator(self) -> Orchestrator:
        return self.replica.orchestrator

    async def up(self) -> "Rig":
        """Everything connected."""
        await self.replica.pool.poll()
        self.connect(Phase.PREFILL)
        self.connect(Phase.DECODE)
        return self

    def phase(self, phase: Phase) -> FakePhase:
        return self.prefill if phase is Phase.PREFILL else self.decode

    def connect(self, phase: Phase) -> None:
        self.phase(phase).connected = True
        self.orchestrator.phase_connected(phase)

    def lose(self, phase: Phase) -> None:
        """The stream breaks; the phase forgets what it had."""
        fake = self.phase(phase)
        fake.connected = False
        lost, fake.held = frozenset(fake.held), {}
        self.orchestrator.phase_lost(phase, lost)

    async def request(
        self,
        text: str = "hi",
        *,
        request_id: str = "",
        priority: int = 0,
        remaining_s: float | None = None,
        resume: Resume | None = None,
        cache_salt: str = "",
        tenant: str = "",
        reuse: ReuseFields | None = None,
        **sampling: Any,
    ) -> Request:
        fields = SamplingFields(**sampling)
        call = Call(request_id, fields, priority, cache_salt, tenant, remaining_s, resume, reuse)
        return await self.gateway.frontend.generate_text(call, text)

    def prefilled(
        self,
        token: int,
        finish: FinishReason = FinishReason.NONE,
        *,
        lease_id: int | None = None,
        cached: int = 0,
        compute_ms: float = 2.0,
        segments: tuple[SegmentOutcome, ...] = (),
        num_publishable_tokens: int | None = None,
        approximate: tuple[Span, ...] = (),
    ) -> SequenceSpec:
        """Prefill is done with a sequence: the one named, or the oldest that it has."""
        spec = _take(self.prefill, lease_id)
        output = SequenceOutput(spec.lease_id, token, None, finish)
        prefilled = Prefilled(output, 1.0, compute_ms, cached, segments, num_publishable_tokens, approximate)
        self.orchestrator.phase_result(PrefillResult(prefilled=(prefilled,)))
        return spec

    def token(self, token: int, finish: FinishReason = FinishReason.NONE, *, lease_id: int | None = None) -> None:
        """Decode has a token for a sequence: the one named, or the oldest that it has."""
        lease_id = next(iter(self.decode.held)) if lease_id is None else lease_id
        if finish is not FinishReason.NONE:
            del self.decode.held[lease_id]
        self.orchestrator.phase_result(DecodeResult(outputs=(SequenceOutput(lease_id, token, None, finish),)))

    def drop(self, phase: Phase, reason: DropReason, lease_id: int | None = None, message: str = "") -> None:
        """The phase lets a sequence go: the one named, or the oldest that it has."""
        spec = _take(self.phase(phase), lease_id)
        dropped = (SequenceDropped(spec.lease_id, reason, message),)
        result = PrefillResult(dropped=dropped) if phase is Phase.PREFILL else DecodeResult(dropped=dropped)
        self.orchestrator.phase_result(result)

    def obey_aborts(self) -> None:
        """The phases answer every abort of a sequence that they still have."""
        for phase in Phase:
            fake = self.phase(phase)
            for lease_id in [lease_id for lease_id in fake.aborted if lease_id in fake.held]:
                self.drop(phase, DropReason.ABORTED, lease_id)
            fake.aborted.clear()

    async def assert_all_released(self) -> None:
        """Nothing is left anywhere, once the phases have obeyed and memd has been told."""
        self.obey_aborts()
        await settle()
        await self.replica.leases.flush()
        assert self.replica.leases.live == frozenset()
        assert self.store.leases == set()
        load = self.orchestrator.load
        assert (load.num_waiting, load.num_prefilling, load.num_decoding) == (0, 0, 0)
        assert self.timers.num_pending == 0


async def rig_with(**settings: Any) -> Rig:
    """A gateway with these settings, everything connected; first come, first served, unless they say otherwise."""
    return await Rig(config=GatewayConfig(**{"queue_policy": "fcfs", **settings})).up()


async def running(rig: Rig, state: str, **kwargs: Any) -> Request:
    """A request whose only sequence is in the state named, with the text of what it has: "", "a" or "ab"."""
    if state == "queued":
        rig.prefill.connected = False
    request = await rig.request(max_tokens=8, **kwargs)
    if state == "prefilled":
        rig.lose(Phase.DECODE)
    if state in ("prefilled", "decoding"):
        rig.prefilled(ord("a"))
    if state == "decoding":
        rig.token(ord("b"))
    assert request.sequences[0].state.name.lower() == state
    return request


def _take(fake: FakePhase, lease_id: int | None) -> SequenceSpec:
    return fake.held.pop(next(iter(fake.held)) if lease_id is None else lease_id)


async def settle() -> None:
    """Lets every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def read_all(request: Request) -> list[Piece]:
    """Every piece of a request that is about to end."""
    pieces = []
    async with asyncio.timeout(60):
        while (piece := await request.output.get()) is not None:
            pieces.append(piece)
    return pieces


def text_of(pieces: Iterable[Piece], index: int = 0) -> str:
    return "".join(piece.text_delta for piece in pieces if piece.index == index)


def tokens_of(pieces: Iterable[Piece], index: int = 0) -> list[int]:
    return [token_id for piece in pieces if piece.index == index for token_id in piece.token_ids]


class ScriptedPhases:
    """Both phases for a live gateway: every answer is `script`, one token a step, then the end-of-sequence token."""

    def __init__(self, rig: Rig, script: bytes) -> None:
        self._rig = rig
        self._script = (*script, EOS)
        self._num_emitted: dict[int, int] = {}  # by lease
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Steps until `stop`, one at a turn of the loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._step()
            await asyncio.sleep(0.001)

    def _step(self) -> None:
        self._rig.obey_aborts()
        running = tuple(self._rig.decode.held.values())
        for spec in tuple(self._rig.prefill.held.values()):
            self._rig.prefilled(*self._next(spec), lease_id=spec.lease_id)
        for spec in running:
            if spec.lease_id in self._rig.decode.held:
                self._rig.token(*self._next(spec), lease_id=spec.lease_id)

    def _next(self, spec: SequenceSpec) -> tuple[int, FinishReason]:
        number = self._num_emitted.get(spec.lease_id, 0)
        self._num_emitted[spec.lease_id] = number + 1
        token = self._script[number % len(self._script)]
        if token in spec.stop.stop_token_ids:
            return token, FinishReason.STOP
        return token, FinishReason.LENGTH if number + 1 == spec.stop.max_tokens else FinishReason.NONE

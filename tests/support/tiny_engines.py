"""Both phases' engines over memd's own store and a tiny random model, in this process; the gateway is played."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import torch
from prometheus_client import CollectorRegistry

from kernels.table import torch_kernels
from services.decode.engine import DecodeEngine
from services.decode.refreshes import UNBOUNDED, Refreshes
from services.memd.store import LocalStore, StorageFacts
from services.prefill.engine import PrefillEngine
from tandem.clock import ManualClock, MonotonicClock
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tandem.phase.crew import Crew
from tandem.phase.joint import JointWork
from tandem.phase.limits import PhaseLimits
from tandem.phase.loop import Reporter, StepLoop
from tandem.phase.outfit import Outfit
from tandem.phase.share import ShareKeeper
from tandem.phase.stepper import Stepper
from tandem.phase.supply import SupplyPolicy
from tandem.reuse.plan import ReusePolicy
from tandem.reuse.refresh import RefreshPolicy
from tandem.runner.model_runner import ModelRunner
from tandem.runner.sampler import sample
from tandem.runner.segment_steps import SegmentSteps
from tandem.runner.steps import LogitsThenDraws
from tandem.runner.wiping import wipe_blocks
from tandem.telemetry.metrics import PhaseMetrics
from tandem.types import Fingerprint, Phase, SequenceSpec
from tests.support.fake_gateway import FakeGateway, Request
from tests.support.phase_fakes import FakeBackend, FakeController

BLOCK_SIZE, NUM_BLOCKS, CHUNK_TOKENS = 16, 160, 64


@dataclass(frozen=True)
class TinyModel:
    """`weights` as of the family's table."""

    config: ModelConfig
    weights: Mapping[str, torch.Tensor]


@dataclass
class TinyEngines:
    """A deployment; the KV cache is NaN where nothing was stored."""

    store: LocalStore
    ledger: Ledger
    gateway: FakeGateway
    prefill: PrefillEngine
    decode: DecodeEngine
    kv_cache: torch.Tensor

    async def run(self, *specs: SequenceSpec) -> list[Request]:
        """All at once, to their ends."""
        done = self.gateway.done
        before = len(done)
        for spec in specs:
            self.gateway.submit(spec)
        await self.gateway.until_done(before + len(specs))
        self.ledger.check()
        ended = {request.spec.lease_id: request for request in done[before:]}
        return [ended[spec.lease_id] for spec in specs]


@asynccontextmanager
async def tiny_engines(
    model: TinyModel,
    *,
    colocated: bool = False,
    policy: ReusePolicy | None = None,
    refresh: RefreshPolicy | None = None,
) -> AsyncIterator[TinyEngines]:
    """Two step loops over one cache, or one whose steps are both phases'."""
    ledger = Ledger.create(
        bytearray(ledger_bytes(NUM_BLOCKS, BLOCK_SIZE)), num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, epoch=1
    )
    facts = StorageFacts(Fingerprint(), 0, 0, 0, 30.0, max_segment_blocks=NUM_BLOCKS // 2)
    store, crew = LocalStore(ledger, facts, ManualClock()), Crew()
    config = model.config
    shape = (config.num_layers, 2, NUM_BLOCKS, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
    kv_cache = torch.full(shape, float("nan"))
    decoding = outfit_of(Phase.DECODE, store, crew, start_steps(model, kv_cache, crew))
    prefilling = outfit_of(
        Phase.PREFILL, store, crew, decoding.steps if colocated else start_steps(model, kv_cache, crew)
    )
    rows = decoding.steps
    prefill = PrefillEngine(
        prefilling, lambda: CHUNK_TOKENS - rows.num_rows if colocated else CHUNK_TOKENS, policy or ReusePolicy()
    )
    decode = DecodeEngine(decoding, Refreshes(refresh, CHUNK_TOKENS if colocated else UNBOUNDED))
    gateway = FakeGateway(store, prefill, decode)
    prefill.start()
    decode.start()
    crew.spawn(gateway.run_prefill())
    crew.spawn(gateway.run_decode())
    failing = asyncio.create_task(crew.failure())
    yield TinyEngines(store, ledger, gateway, prefill, decode, kv_cache)
    assert not failing.done(), failing.exception()
    failing.cancel()
    await crew.cancel()


def start_steps(model: TinyModel, kv_cache: torch.Tensor, crew: Crew) -> JointWork:
    """A process's step loop."""
    kernels, steps, clock = torch_kernels(), JointWork(), MonotonicClock()
    decoder = get_family(model.config.family).build(model.config, model.weights, kernels)
    stepper = Stepper(
        LogitsThenDraws(ModelRunner(decoder, kv_cache, BLOCK_SIZE), sample),
        open_segments=partial(SegmentSteps, model.config, model.weights, kernels, kv_cache),
        wipe=partial(wipe_blocks, kv_cache),
    )
    metrics = PhaseMetrics.create(CollectorRegistry(), Phase.PREFILL)
    controller = FakeController()
    share = ShareKeeper(Phase.PREFILL, controller, FakeBackend(), stepper, metrics=metrics, clock=clock)
    reporter = Reporter(controller, metrics, lambda: 7)
    loop = StepLoop(steps, wake=steps.wake, stepper=stepper, share=share, reporter=reporter, clock=clock)
    crew.spawn(loop.run())
    return steps


def outfit_of(phase: Phase, store: LocalStore, crew: Crew, steps: JointWork) -> Outfit:
    return Outfit(
        store=store,
        holder_id=store.attach(phase, 1, Fingerprint()).holder_id,
        limits=PhaseLimits(8, BLOCK_SIZE, NUM_BLOCKS, 384, 512),
        supply_policy=SupplyPolicy(8, first_retry_s=0.002, last_retry_s=0.01, lean_s=0.005),
        steps=steps,
        metrics=PhaseMetrics.create(CollectorRegistry(), phase),
        crew=crew,
        clock=MonotonicClock(),
    )

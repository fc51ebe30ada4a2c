"""A memory store, a model and a gateway small enough to be obviously right, for tests of the phases."""

import asyncio
import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field

import torch
from prometheus_client import CollectorRegistry

from services.decode.engine import DecodeEngine
from services.prefill.engine import PrefillEngine
from tandem.clock import Clock, MonotonicClock
from tandem.device.partition import Applied, RestartRequired
from tandem.errors import LeaseError, NotFoundError, NotReadyError, StaleBlockError, TandemError
from tandem.kv.store import PromptTokens, SequenceLease, SequenceUpdate, StorageStatistics
from tandem.model.batch import SequenceRows
from tandem.phase.crew import Crew
from tandem.phase.joint import JointWork
from tandem.phase.limits import PhaseLimits
from tandem.phase.loop import Reporter, StepLoop
from tandem.phase.outfit import Outfit
from tandem.phase.session import Session
from tandem.phase.share import ShareKeeper
from tandem.phase.stepper import Stepper
from tandem.phase.supply import SupplyPolicy
from tandem.runner.sampler import Draw, SampledToken
from tandem.runner.steps import LogitsThenDraws, TokenCopy
from tandem.telemetry.metrics import PhaseMetrics
from tandem.types import (
    AbortSequence,
    Block,
    DecodeResult,
    DropReason,
    Fingerprint,
    FinishReason,
    Phase,
    PrefillResult,
    SamplingSpec,
    SequenceDropped,
    SequenceOutput,
    SequenceSpec,
    Split,
    StepStatistics,
    StopSpec,
    Submit,
)

VOCAB_SIZE = 97
BLOCK_SIZE = 4
PREFILL_HOLDER, DECODE_HOLDER = 1, 2


def next_token(context: Sequence[int]) -> int:
    """What the fake model says after `context`."""
    return zlib.crc32(",".join(map(str, context)).encode()) % VOCAB_SIZE


def continuation(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What the fake model says after `prompt`, alone and undisturbed."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass
class Slots:
    """The KV memory that both phases' fake models share: which token stands in which slot of which block."""

    tokens: dict[tuple[int, int], int] = field(default_factory=dict)

    def write(self, rows: SequenceRows) -> None:
        for offset, token in enumerate(rows.token_ids):
            self.tokens[self._slot(rows, rows.start + offset)] = token

    def context(self, rows: SequenceRows) -> list[int]:
        end = rows.start + len(rows.token_ids)
        return [self.tokens.get(self._slot(rows, position), -1) for position in range(end)]

    def copy(self, copies: Sequence[TokenCopy]) -> None:
        for copy in copies:
            for offset in range(copy.num_tokens):
                self.tokens[copy.target_block_id, offset] = self.tokens[copy.source_block_id, offset]

    def _slot(self, rows: SequenceRows, position: int) -> tuple[int, int]:
        return rows.block_ids[position // BLOCK_SIZE], position % BLOCK_SIZE


class FakeRunner:
    """Its answer depends on every slot of the context, so a block used twice or not written shows in the tokens."""

    def __init__(self, slots: Slots) -> None:
        self.steps: list[tuple[SequenceRows, ...]] = []
        self.failures: list[Exception] = []  # raised by the next steps, one each
        self.gate = threading.Event()  # a step waits until it is set
        self.gate.set()
        self.entered = threading.Event()
        self._slots = slots

    def copy_tokens(self, copies: Sequence[TokenCopy]) -> None:
        self._slots.copy(copies)

    def execute(self, rows: Sequence[SequenceRows]) -> torch.Tensor:
        copies = tuple(SequenceRows(tuple(r.token_ids), r.start, tuple(r.block_ids)) for r in rows)
        self.entered.set()
        assert self.gate.wait(20)
        if self.failures:
            raise self.failures.pop(0)
        self.steps.append(copies)
        for part in copies:
            self._slots.write(part)
        return torch.stack([_logits(self._slots.context(part)) for part in copies])

    def hold(self) -> None:
        """The next step stays under way until `gate` is set."""
        self.entered.clear()
        self.gate.clear()

    async def until_held(self) -> None:
        assert await asyncio.get_running_loop().run_in_executor(None, self.entered.wait, 20)


def _logits(context: Sequence[int]) -> torch.Tensor:
    logits = torch.zeros(VOCAB_SIZE)
    best = next_token(context)
    logits[best], logits[(best + 1) % VOCAB_SIZE] = 2.0, 1.0
    return logits


def greedy(logits: torch.Tensor, draws: Sequence[Draw]) -> list[SampledToken]:
    """A sampler that honours bans and checks the position it is told."""
    tokens = []
    for row, draw in zip(logits, draws, strict=True):
        assert draw.position == len(draw.prompt_token_ids) + len(draw.output_token_ids)
        allowed = row.clone()
        allowed[list(draw.banned_token_ids)] = float("-inf")
        tokens.append(SampledToken(int(allowed.argmax()), None))
    return tokens


@dataclass
class Lease:
    holder_id: int
    blocks: list[Block]
    num_sealed: int
    num_shared: int = 0


class FakeStore:
    """One pool, one dictionary of leases; no time to live."""

    def __init__(self, num_blocks: int, reserve_blocks: int = 0) -> None:
        self.num_blocks = num_blocks
        self.reserve_blocks = reserve_blocks
        self.free = [Block(block_id, 1) for block_id in range(num_blocks)]
        self.spare: dict[int, set[Block]] = {PREFILL_HOLDER: set(), DECODE_HOLDER: set()}
        self.leases: dict[int, Lease] = {}
        self.shared: dict[Block, int] = {}
        self.acquire_gate = asyncio.Event()
        self.update_gate = asyncio.Event()
        self.acquire_gate.set()
        self.update_gate.set()
        self.acquire_error: TandemError | None = None
        self.update_errors: list[TandemError] = []
        self.refusing = False
        self.away = False
        self.num_lease_calls = 0
        self.lease_calls_under_way = 0
        self.most_lease_calls_under_way = 0
        self.updates: list[tuple[SequenceUpdate, ...]] = []
        self.on_short: Callable[[int, int], None] = lambda holder_id, num_blocks: None

    async def lease_blocks(self, holder_id: int, num_blocks: int) -> tuple[Block, ...]:
        self.num_lease_calls += 1
        if self.away:
            raise NotReadyError("away")
        self.lease_calls_under_way += 1
        self.most_lease_calls_under_way = max(self.most_lease_calls_under_way, self.lease_calls_under_way)
        await asyncio.sleep(0)
        self.lease_calls_under_way -= 1
        reserve = self.reserve_blocks if holder_id == PREFILL_HOLDER else 0
        num_granted = 0 if self.refusing else max(0, min(num_blocks, len(self.free) - reserve))
        granted = tuple(self._next_generation(self.free.pop()) for _ in range(num_granted))
        self.spare[holder_id].update(granted)
        if num_granted < num_blocks:
            self.on_short(holder_id, num_blocks - num_granted)
        return granted

    async def return_blocks(self, holder_id: int, blocks: Sequence[Block]) -> None:
        if not set(blocks) <= self.spare[holder_id]:
            raise StaleBlockError(f"not spare blocks of {holder_id}: {blocks}")
        self.spare[holder_id] -= set(blocks)
        self.free.extend(blocks)

    async def acquire_sequence(self, holder_id: int, lease_id: int, request_id: str, create: bool) -> SequenceLease:
        await self.acquire_gate.wait()
        if self.acquire_error is not None:
            raise self.acquire_error
        if lease_id not in self.leases:
            if not create:
                raise NotFoundError(f"no lease {lease_id}")
            self.leases[lease_id] = Lease(holder_id, [], 0)
        lease = self.leases[lease_id]
        lease.holder_id = holder_id
        return SequenceLease(lease_id, tuple(lease.blocks), lease.num_sealed)

    async def claim_prefix(
        self, holder_id: int, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None = None
    ) -> SequenceLease:
        """This store publishes nothing."""
        lease = self.leases[lease_id]
        return SequenceLease(lease_id, tuple(lease.blocks), lease.num_sealed)

    async def update_sequences(self, holder_id: int, updates: Sequence[SequenceUpdate]) -> frozenset[int]:
        await self.update_gate.wait()
        if self.update_errors:
            raise self.update_errors.pop(0)
        self.updates.append(tuple(updates))
        return frozenset(update.lease_id for update in updates if not self._apply(holder_id, update))

    async def fork_sequence(self, parent_lease_id: int, child_lease_id: int, request_id: str, num_tokens: int) -> int:
        parent = self.leases[parent_lease_id]
        num_shared = min(num_tokens, parent.num_sealed) // BLOCK_SIZE
        blocks = parent.blocks[:num_shared]
        for block in blocks:
            self.shared[block] = self.shared.get(block, 1) + 1
        self.leases[child_lease_id] = Lease(0, list(blocks), num_shared * BLOCK_SIZE, num_shared)
        return num_shared * BLOCK_SIZE

    async def renew_sequences(self, lease_ids: Sequence[int]) -> frozenset[int]:
        return frozenset(lease_ids) - self.leases.keys()

    async def release_sequences(self, lease_ids: Sequence[int]) -> int:
        freed = 0
        for lease_id in lease_ids:
            lease = self.leases.pop(lease_id, None)
            for block in lease.blocks if lease else ():
                users = self.shared.get(block, 1) - 1
                self.shared[block] = users
                if users == 0:
                    del self.shared[block]
                    self.free.append(block)
                    freed += 1
        return freed

    async def abandon_sequences(self, lease_ids: Sequence[int]) -> None:
        raise AssertionError("no phase abandons")

    async def statistics(self) -> StorageStatistics:
        num_spare = sum(map(len, self.spare.values()))
        return StorageStatistics(
            fingerprint=Fingerprint(),
            epoch=1,
            num_blocks=self.num_blocks,
            num_free_blocks=len(self.free),
            num_spare_blocks=num_spare,
            num_leased_blocks=self.num_blocks - len(self.free) - num_spare,
            num_cached_blocks=0,
            num_sequences=len(self.leases),
            weight_bytes=0,
            kv_bytes=0,
            holders=(),
            num_reserve_blocks=self.reserve_blocks,
        )

    def check(self) -> None:
        """Every block is in exactly one place; shared ones in several leases."""
        leased = {block.block_id for lease in self.leases.values() for block in lease.blocks}
        spare = [block.block_id for blocks in self.spare.values() for block in blocks]
        free = [block.block_id for block in self.free]
        everywhere = [*leased, *spare, *free]
        assert sorted(everywhere) == list(range(self.num_blocks))

    def _apply(self, holder_id: int, update: SequenceUpdate) -> bool:
        lease = self.leases.get(update.lease_id)
        if lease is None or lease.holder_id != holder_id:
            return False
        added = set(update.add_blocks)
        if not added <= self.spare[holder_id]:
            raise StaleBlockError(f"not spare blocks of {holder_id}: {added}")
        if update.num_sealed_tokens > BLOCK_SIZE * (len(lease.blocks) + len(added)):
            raise LeaseError("more tokens sealed than the blocks hold")
        self.spare[holder_id] -= added
        lease.blocks.extend(update.add_blocks)
        if update.let_go:
            lease.holder_id = 0
        else:
            assert update.num_sealed_tokens >= lease.num_sealed
            lease.num_sealed = update.num_sealed_tokens
        return True

    def _next_generation(self, block: Block) -> Block:
        return Block(block.block_id, block.generation + 1)


@dataclass
class FakeController:
    """Plays the controller's link."""

    assignments: list[tuple[int, Split]] = field(default_factory=list)
    steps: list[StepStatistics] = field(default_factory=list)
    applied: list[tuple[int, str]] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)  # of an applied share
    stepped: asyncio.Event = field(default_factory=asyncio.Event)

    def pending(self) -> tuple[int, Split] | None:
        return self.assignments.pop(0) if self.assignments else None

    def report_step(self, step: StepStatistics) -> None:
        self.steps.append(step)
        self.stepped.set()

    def report_applied(self, decision_id: int, outcome: Applied | RestartRequired, apply_ms: float) -> None:
        self.applied.append((decision_id, outcome.detail))
        self.told.set()


class FakeBackend:
    """Says on which thread it was applied."""

    name = "fake"

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        return Applied(f"{phase} {split.prefill_percent}/{split.decode_percent} on {threading.current_thread().name}")

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class Rig:
    """An engine's surroundings, kept at hand for the test."""

    runner: FakeRunner
    controller: FakeController
    metrics: PhaseMetrics
    outfit: Outfit


def make_rig(
    phase: Phase,
    store: FakeStore,
    slots: Slots,
    crew: Crew,
    *,
    max_sequences: int = 8,
    ahead_blocks: int = 4,
    max_context_tokens: int = 1000,
    clock: Clock | None = None,
    steps: JointWork | None = None,
) -> Rig:
    """Surroundings with short retries, and a running step loop unless the engine is to join the `steps` of another."""
    clock = clock or MonotonicClock()
    runner, controller = FakeRunner(slots), FakeController()
    metrics = PhaseMetrics.create(CollectorRegistry(), phase)
    stepper = Stepper(LogitsThenDraws(runner, greedy))
    reserve = store.reserve_blocks if phase is Phase.PREFILL else 0
    outfit = Outfit(
        store=store,
        holder_id=PREFILL_HOLDER if phase is Phase.PREFILL else DECODE_HOLDER,
        limits=PhaseLimits(max_sequences, BLOCK_SIZE, store.num_blocks - reserve, VOCAB_SIZE, max_context_tokens),
        supply_policy=SupplyPolicy(ahead_blocks, first_retry_s=0.002, last_retry_s=0.01, lean_s=0.005),
        steps=steps or JointWork(),
        metrics=metrics,
        crew=crew,
        clock=clock,
    )
    if steps is None:
        share = ShareKeeper(phase, controller, FakeBackend(), stepper, metrics=metrics, clock=clock)
        reporter = Reporter(controller, metrics, lambda: 7)
        loop = StepLoop(
            outfit.steps, wake=outfit.steps.wake, stepper=stepper, share=share, reporter=reporter, clock=clock
        )
        crew.spawn(loop.run())
    return Rig(runner, controller, metrics, outfit)


def make_spec(
    lease_id: int,
    prompt: Sequence[int],
    *,
    output: Sequence[int] = (),
    max_tokens: int = 8,
    min_tokens: int = 0,
    stop_token_ids: tuple[int, ...] = (),
    priority: int = 0,
    arrival: int | None = None,
) -> SequenceSpec:
    """A greedy sequence; it arrives in the order of its id unless told otherwise."""
    return SequenceSpec(
        lease_id=lease_id,
        request_id=f"request-{lease_id}",
        token_ids=(*prompt, *output),
        num_prompt_tokens=len(prompt),
        sampling=SamplingSpec(temperature=0.0),
        stop=StopSpec(max_tokens, min_tokens, stop_token_ids),
        priority=priority,
        arrival_unix_ns=lease_id if arrival is None else arrival,
    )


@dataclass
class Request:
    """A request as the gateway keeps it."""

    spec: SequenceSpec
    output: list[int] = field(default_factory=list)
    finish_reason: FinishReason = FinishReason.NONE
    drops: list[DropReason] = field(default_factory=list)
    num_cached: list[int] = field(default_factory=list)


class FakeGateway:
    """Carries requests from prefill to decode, releases what has ended, and sends again what was dropped."""

    def __init__(self, store: FakeStore, prefill: PrefillEngine, decode: DecodeEngine) -> None:
        self.requests: dict[int, Request] = {}  # by the lease they have now
        self.done: list[Request] = []
        self._store = store
        self._prefill, self._decode = prefill, decode
        self._prefill_session: Session[PrefillResult] = prefill.open_session()
        self._decode_session: Session[DecodeResult] = decode.open_session()
        self._next_lease_id = 1_000_000
        self._finished = asyncio.Event()

    def submit(self, spec: SequenceSpec) -> None:
        self.requests[spec.lease_id] = Request(spec)
        self._prefill.command(self._prefill_session, Submit(spec))

    def abort(self, lease_id: int) -> None:
        self._prefill.command(self._prefill_session, AbortSequence(lease_id))
        self._decode.command(self._decode_session, AbortSequence(lease_id))

    async def until_done(self, num_requests: int) -> None:
        async with asyncio.timeout(30):
            while len(self.done) < num_requests:
                self._finished.clear()
                await self._finished.wait()

    async def run_prefill(self) -> None:
        async with aclosing(self._prefill_session.results()) as results:
            async for result in results:
                for prefilled in result.prefilled:
                    self.requests[prefilled.output.lease_id].num_cached.append(prefilled.num_cached_tokens)
                    await self._take(prefilled.output, hand_over=True)
                for dropped in result.dropped:
                    await self._send_again(dropped)

    async def run_decode(self) -> None:
        async with aclosing(self._decode_session.results()) as results:
            async for result in results:
                for output in result.outputs:
                    await self._take(output, hand_over=False)
                for dropped in result.dropped:
                    await self._send_again(dropped)

    async def _take(self, output: SequenceOutput, *, hand_over: bool) -> None:
        request = self.requests[output.lease_id]
        request.output.append(output.token_id)
        if output.finish_reason is not FinishReason.NONE:
            request.finish_reason = output.finish_reason
            await self._end(output.lease_id)
        elif hand_over:
            spec = self._with_output(request, output.lease_id)
            self._decode.command(self._decode_session, Submit(spec))

    async def _send_again(self, dropped: SequenceDropped) -> None:
        request = self.requests[dropped.lease_id]
        request.drops.append(dropped.reason)
        if dropped.reason in (DropReason.ABORTED, DropReason.FAILED, DropReason.DRAINING):
            await self._end(dropped.lease_id)
            return
        del self.requests[dropped.lease_id]
        await self._store.release_sequences([dropped.lease_id])
        self._next_lease_id += 1
        self.requests[self._next_lease_id] = request
        spec = self._with_output(request, self._next_lease_id)
        self._prefill.command(self._prefill_session, Submit(spec))

    async def _end(self, lease_id: int) -> None:
        self.done.append(self.requests.pop(lease_id))
        await self._store.release_sequences([lease_id])
        self._finished.set()

    def _with_output(self, request: Request, lease_id: int) -> SequenceSpec:
        spec = request.spec
        prompt = spec.token_ids[: spec.num_prompt_tokens]
        return SequenceSpec(
            lease_id=lease_id,
            request_id=spec.request_id,
            token_ids=(*prompt, *request.output),
            num_prompt_tokens=len(prompt),
            sampling=spec.sampling,
            stop=spec.stop,
            priority=spec.priority,
            arrival_unix_ns=spec.arrival_unix_ns,
        )

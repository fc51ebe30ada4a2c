"""A prefill engine over memd's own store; the test plays the gateway."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from services.memd.store import LocalStore, StorageFacts
from services.prefill.engine import PrefillEngine
from tandem.clock import ManualClock
from tandem.kv.contents import namespace as digest_of
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.kv.store import KeyedBlock, PromptTokens, SequenceLease, SequenceUpdate
from tandem.phase.crew import Crew
from tandem.phase.session import Session
from tandem.reuse.plan import ReusePolicy
from tandem.types import Block, DropReason, Fingerprint, Phase, Prefilled, PrefillResult, SequenceSpec, Submit
from tests.support.fake_model import BLOCK_SIZE, VOCAB_SIZE, Slots, next_token
from tests.support.phase_fakes import Rig, make_rig


class Store(LocalStore):
    """memd's own; its pool's size and reserve as a rig wants to know them."""

    def __init__(self, num_blocks: int, reserve_blocks: int) -> None:
        self.num_blocks, self.reserve_blocks = num_blocks, reserve_blocks
        self.ledger = Ledger.create(
            bytearray(ledger_bytes(num_blocks, BLOCK_SIZE)), num_blocks=num_blocks, block_size=BLOCK_SIZE, epoch=1
        )
        facts = StorageFacts(Fingerprint(), 0, 0, reserve_blocks, 30.0, max_segment_blocks=num_blocks // 2)
        super().__init__(self.ledger, facts, ManualClock())
        self.published: list[KeyedBlock] = []
        self.num_claims = self.num_finds = 0
        self.find_gate = asyncio.Event()
        self.find_gate.set()
        for phase in (Phase.PREFILL, Phase.DECODE):
            self.attach(phase, 1, Fingerprint())

    async def find_blocks(self, holder_id: int, runs: Sequence[Sequence[bytes]]) -> tuple[tuple[Block, ...], ...]:
        self.num_finds += 1
        await self.find_gate.wait()
        return await super().find_blocks(holder_id, runs)

    async def claim_prefix(
        self, holder_id: int, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None = None
    ) -> SequenceLease:
        self.num_claims += 1
        return await super().claim_prefix(holder_id, lease_id, keys, prompt)

    async def update_sequences(self, holder_id: int, updates: Sequence[SequenceUpdate]) -> frozenset[int]:
        lost = await super().update_sequences(holder_id, updates)
        self.published += [block for update in updates if update.lease_id not in lost for block in update.publish]
        return lost


@dataclass
class Bench:
    store: Store
    rig: Rig
    engine: PrefillEngine
    session: Session[PrefillResult]
    prefilled: dict[int, Prefilled] = field(default_factory=dict)
    dropped: dict[int, DropReason] = field(default_factory=dict)
    messages: dict[int, str] = field(default_factory=dict)  # of those that were dropped
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, spec: SequenceSpec, namespace: bytes = b"tenant") -> None:
        """In `namespace`, unless it names one itself."""
        namespace = spec.cache_namespace or (namespace and digest_of(namespace))
        self.engine.command(self.session, Submit(replace(spec, cache_namespace=namespace)))

    async def listen(self) -> None:
        async for result in self.session.results():
            self.prefilled |= {prefilled.output.lease_id: prefilled for prefilled in result.prefilled}
            self.dropped |= {dropped.lease_id: dropped.reason for dropped in result.dropped}
            self.messages |= {dropped.lease_id: dropped.message for dropped in result.dropped}
            self.changed.set()

    async def run(self, *specs: SequenceSpec, namespace: bytes = b"tenant") -> list[int]:
        """Submits them one after another, each when the one before has its token; how many tokens each shared."""
        for spec in specs:
            self.submit(spec, namespace)
            await self.until_prefilled(spec)
        return [self.prefilled[spec.lease_id].num_cached_tokens for spec in specs]

    async def until_dropped(self, lease_id: int) -> DropReason:
        async with asyncio.timeout(20):
            while lease_id not in self.dropped:
                self.changed.clear()
                await self.changed.wait()
        return self.dropped[lease_id]

    async def until_prefilled_with_retries(self, spec: SequenceSpec) -> None:
        """As the gateway does it: a prompt whose lease was lost is sent again."""
        async with asyncio.timeout(20):
            while spec.lease_id not in self.prefilled:
                if self.dropped.pop(spec.lease_id, None) is DropReason.LEASE_LOST:
                    await self.store.release_sequences([spec.lease_id])
                    self.submit(spec)
                self.changed.clear()
                await self.changed.wait()
        await self.until_prefilled(spec)

    async def until_prefilled(self, *specs: SequenceSpec) -> None:
        async with asyncio.timeout(20):
            while not all(spec.lease_id in self.prefilled for spec in specs):
                self.changed.clear()
                await self.changed.wait()
        for spec in specs:
            assert self.prefilled[spec.lease_id].output.token_id == next_token(spec.token_ids)
        self.store.ledger.check()

    def num_computed(self) -> int:
        return sum(len(rows.token_ids) for step in self.rig.runner.steps for rows in step)


@asynccontextmanager
async def prefill_benches() -> AsyncIterator[Callable[..., Bench]]:
    """As many as are made, until the end."""
    crews: list[Crew] = []

    def make(
        num_blocks: int = 64,
        reserve_blocks: int = 0,
        chunk_tokens: int = 16,
        policy: ReusePolicy | None = None,
        **options: Any,
    ) -> Bench:
        store, crew = Store(num_blocks, reserve_blocks), Crew()
        rig = make_rig(Phase.PREFILL, store, Slots(), crew, **options)
        engine = PrefillEngine(rig.outfit, lambda: chunk_tokens, policy or ReusePolicy())
        bench = Bench(store, rig, engine, engine.open_session())
        engine.start()
        crew.spawn(bench.listen())
        crews.append(crew)
        return bench

    yield make
    for crew in crews:
        await crew.cancel()


def tokens(seed: int, length: int) -> list[int]:
    return [(seed * 31 + i * i * 7) % VOCAB_SIZE for i in range(length)]

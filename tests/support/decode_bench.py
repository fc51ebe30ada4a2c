"""A decode engine; the test plays prefill and the gateway."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from services.decode.engine import DecodeEngine
from services.decode.refreshes import Refreshes
from tandem.kv.store import SequenceUpdate
from tandem.model.batch import SequenceRows
from tandem.phase.crew import Crew
from tandem.phase.session import Session
from tandem.types import DecodeResult, FinishReason, Phase, SequenceDropped, SequenceSpec, Submit
from tests.support.fake_model import BLOCK_SIZE, VOCAB_SIZE, Slots, next_token
from tests.support.fake_store import PREFILL_HOLDER, FakeStore
from tests.support.phase_fakes import Rig, make_rig, make_spec


@dataclass
class Bench:
    """A decode engine, and prefill and the gateway played by the test."""

    store: FakeStore
    slots: Slots
    rig: Rig
    engine: DecodeEngine
    crew: Crew
    session: Session[DecodeResult]
    outputs: dict[int, list[int]] = field(default_factory=dict)
    num_refreshed: dict[int, list[int]] = field(default_factory=dict)  # beside each of them
    finished: dict[int, FinishReason] = field(default_factory=dict)
    dropped: dict[int, SequenceDropped] = field(default_factory=dict)
    messages: list[DecodeResult] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def prefill(self, spec: SequenceSpec, num_sealed: int | None = None) -> None:
        """What prefill leaves in memd and in the KV memory: everything before the last token."""
        num_tokens = len(spec.token_ids) - 1 if num_sealed is None else num_sealed
        await self.store.acquire_sequence(PREFILL_HOLDER, spec.lease_id, spec.request_id, create=True)
        num_blocks = -(-(len(spec.token_ids) - 1) // BLOCK_SIZE)
        blocks = await self.store.lease_blocks(PREFILL_HOLDER, num_blocks)
        assert len(blocks) == num_blocks
        await self.store.update_sequences(PREFILL_HOLDER, [SequenceUpdate(spec.lease_id, blocks, num_tokens)])
        self.slots.write(SequenceRows(spec.token_ids[:num_tokens], 0, [block.block_id for block in blocks]))

    async def submit(self, spec: SequenceSpec) -> None:
        await self.prefill(spec)
        self.engine.command(self.session, Submit(spec))

    async def listen(self) -> None:
        async for result in self.session.results():
            self.messages.append(result)
            for output in result.outputs:
                self.outputs.setdefault(output.lease_id, []).append(output.token_id)
                self.num_refreshed.setdefault(output.lease_id, []).append(output.num_refreshed)
                if output.finish_reason is not FinishReason.NONE:
                    self.finished[output.lease_id] = output.finish_reason
                    await self.store.release_sequences([output.lease_id])
            for dropped in result.dropped:
                self.dropped[dropped.lease_id] = dropped
                await self.store.release_sequences([dropped.lease_id])
            self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def make_bench(num_blocks: int, refreshes: Refreshes | None = None, **options: Any) -> Bench:
    store, slots, crew = FakeStore(num_blocks), Slots(), Crew()
    rig = make_rig(Phase.DECODE, store, slots, crew, **options)
    engine = DecodeEngine(rig.outfit, refreshes)
    bench = Bench(store, slots, rig, engine, crew, engine.open_session())
    engine.start()
    crew.spawn(bench.listen())
    return bench


@asynccontextmanager
async def decode_benches() -> AsyncIterator[Callable[..., Bench]]:
    """Makes benches, and ends them."""
    made: list[Bench] = []

    def make(num_blocks: int = 64, **options: Any) -> Bench:
        made.append(make_bench(num_blocks, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.rig.runner.gate.set()
        await bench.crew.cancel()


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 31 + i * 7) % VOCAB_SIZE for i in range(length)]


def handed_over(lease_id: int, tokens: Sequence[int], **options: Any) -> SequenceSpec:
    """The prompt and prefill's token."""
    return make_spec(lease_id, tokens, output=[next_token(tokens)], **options)

"""Prompts that begin alike share blocks; the fake model's answer depends on every slot of their context."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from services.memd.store import LocalStore, StorageFacts
from services.prefill.engine import PrefillEngine
from tandem.clock import ManualClock
from tandem.kv.contents import namespace as digest_of
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.phase.crew import Crew
from tandem.phase.session import Session
from tandem.types import AbortSequence, DropReason, Fingerprint, Phase, Prefilled, PrefillResult, SequenceSpec, Submit
from tests.support.phase_fakes import BLOCK_SIZE, DECODE_HOLDER, VOCAB_SIZE, Rig, Slots, make_rig, make_spec, next_token


class Store(LocalStore):
    """memd's own; its pool's size and reserve as a rig wants to know them."""

    def __init__(self, num_blocks: int, reserve_blocks: int) -> None:
        self.num_blocks, self.reserve_blocks = num_blocks, reserve_blocks
        self.ledger = Ledger.create(
            bytearray(ledger_bytes(num_blocks, BLOCK_SIZE)), num_blocks=num_blocks, block_size=BLOCK_SIZE, epoch=1
        )
        super().__init__(self.ledger, StorageFacts(Fingerprint(), 0, 0, reserve_blocks, 30.0), ManualClock())
        for phase in (Phase.PREFILL, Phase.DECODE):
            self.attach(phase, 1, Fingerprint())


@dataclass
class Bench:
    store: Store
    rig: Rig
    engine: PrefillEngine
    session: Session[PrefillResult]
    prefilled: dict[int, Prefilled] = field(default_factory=dict)
    dropped: dict[int, DropReason] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, spec: SequenceSpec, namespace: bytes = b"tenant") -> None:
        self.engine.command(self.session, Submit(replace(spec, cache_namespace=namespace and digest_of(namespace))))

    async def listen(self) -> None:
        async for result in self.session.results():
            self.prefilled |= {prefilled.output.lease_id: prefilled for prefilled in result.prefilled}
            self.dropped |= {dropped.lease_id: dropped.reason for dropped in result.dropped}
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


@pytest.fixture
async def benches() -> AsyncIterator[Callable[..., Bench]]:
    crews: list[Crew] = []

    def make(num_blocks: int = 64, reserve_blocks: int = 0, chunk_tokens: int = 16, **options: Any) -> Bench:
        store, crew = Store(num_blocks, reserve_blocks), Crew()
        rig = make_rig(Phase.PREFILL, store, Slots(), crew, **options)
        engine = PrefillEngine(rig.outfit, lambda: chunk_tokens)
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


async def test_a_prompt_shares_the_full_blocks_that_it_has_in_common_with_one_before(benches: Callable[..., Bench]):
    bench = benches()
    common = tokens(1, 10)
    specs = [make_spec(1, [*common, 5]), make_spec(2, [*common, 6, 7]), make_spec(3, tokens(2, 10))]
    assert await bench.run(*specs) == [0, 8, 0]
    assert bench.num_computed() == 11 + 4 + 10


@pytest.mark.parametrize("length", [BLOCK_SIZE, 3 * BLOCK_SIZE])
async def test_a_prompt_that_is_there_whole_computes_its_last_token(benches: Callable[..., Bench], length: int):
    bench = benches()
    assert await bench.run(make_spec(1, tokens(1, length)), make_spec(2, tokens(1, length))) == [0, length - 1]
    assert [len(rows.token_ids) for step in bench.rig.runner.steps for rows in step] == [length, 1]


async def test_a_block_that_was_copied_from_stays_as_it_is(benches: Callable[..., Bench]):
    """The second prompt goes on otherwise within the first one's last block, the third one as the first."""
    bench = benches()
    common = tokens(1, 10)
    specs = [make_spec(1, [*common, 5, 6]), make_spec(2, [*common, 7, 8]), make_spec(3, [*common, 5, 6, 9])]
    assert await bench.run(*specs) == [0, 10, 12]


async def test_a_copy_of_what_is_given_away_meanwhile_costs_the_lease(benches: Callable[..., Bench]):
    bench = benches(num_blocks=16, ahead_blocks=2)
    await bench.run(make_spec(1, tokens(1, 8)))
    await bench.store.release_sequences([1])
    bench.rig.runner.hold()
    bench.submit(make_spec(2, tokens(1, 8)))
    await bench.rig.runner.until_held()
    await bench.store.lease_blocks(DECODE_HOLDER, 16)
    bench.rig.runner.gate.set()
    assert await bench.until_dropped(2) is DropReason.LEASE_LOST
    assert 2 not in bench.prefilled
    assert len(bench.store.ledger.published.stored()) == 1  # the first block: nothing false was published


async def test_a_prompt_that_must_wait_for_blocks_does_not_count_on_a_copy(benches: Callable[..., Bench]):
    bench = benches(num_blocks=16, ahead_blocks=0)
    assert await bench.run(make_spec(1, tokens(1, 8)), make_spec(2, tokens(1, 8))) == [0, 4]


async def test_a_short_prompt_in_no_namespace_is_computed(benches: Callable[..., Bench]):
    bench = benches()
    assert await bench.run(make_spec(1, tokens(1, 4)), make_spec(2, tokens(1, 4)), namespace=b"") == [0, 0]


async def test_blocks_are_shared_after_their_lease_has_ended(benches: Callable[..., Bench]):
    bench = benches()
    await bench.run(make_spec(1, tokens(1, 13)))
    await bench.store.release_sequences([1])
    assert (await bench.store.statistics()).num_cached_blocks == 3
    assert await bench.run(make_spec(2, tokens(1, 13))) == [12]


async def test_another_namespace_shares_nothing(benches: Callable[..., Bench]):
    bench = benches()
    assert await bench.run(make_spec(1, tokens(1, 13)), namespace=b"one") == [0]
    assert await bench.run(make_spec(2, tokens(1, 13)), namespace=b"other") == [0]
    assert await bench.run(make_spec(3, tokens(1, 13)), namespace=b"") == [0]
    assert await bench.run(make_spec(4, tokens(1, 13)), namespace=b"one") == [12]


async def test_followers_wait_for_the_one_that_computes_what_they_share(benches: Callable[..., Bench]):
    bench = benches(chunk_tokens=8, ahead_blocks=32)
    common = tokens(1, 24)
    specs = [make_spec(number, [*common, number]) for number in range(1, 6)]
    for spec in specs:
        bench.submit(spec)
    await bench.until_prefilled(*specs)
    assert bench.num_computed() == 25 + 4 * 1


async def test_a_follower_goes_on_alone_when_its_leader_is_let_go(benches: Callable[..., Bench]):
    bench = benches(chunk_tokens=8, ahead_blocks=32)
    bench.rig.runner.hold()
    leader, follower = make_spec(1, [*tokens(1, 24), 1]), make_spec(2, [*tokens(1, 24), 2])
    bench.submit(leader)
    await bench.rig.runner.until_held()
    bench.submit(follower)
    for _ in range(20):
        await asyncio.sleep(0)
    bench.engine.command(bench.session, AbortSequence(1))
    bench.rig.runner.gate.set()
    await bench.until_prefilled(follower)
    assert bench.num_computed() <= 8 + 25


async def test_a_follower_can_be_let_go(benches: Callable[..., Bench]):
    bench = benches(chunk_tokens=8, ahead_blocks=32)
    bench.rig.runner.hold()
    leader, follower = make_spec(1, [*tokens(1, 24), 1]), make_spec(2, [*tokens(1, 24), 2])
    bench.submit(leader)
    await bench.rig.runner.until_held()
    bench.submit(follower)
    for _ in range(20):
        await asyncio.sleep(0)
    bench.engine.command(bench.session, AbortSequence(2))
    bench.rig.runner.gate.set()
    await bench.until_prefilled(leader)
    assert 2 not in bench.prefilled
    assert bench.engine.load().num_waiting == 0


async def test_waiting_prompts_do_not_keep_what_the_first_one_lacks(benches: Callable[..., Bench]):
    """The pool is full of cached blocks that a later prompt could share, and the first one needs nearly all of it."""
    bench = benches(num_blocks=16, max_sequences=2, ahead_blocks=0)
    await bench.run(make_spec(1, tokens(1, 40)))
    await bench.store.release_sequences([1])
    large, small = make_spec(2, tokens(2, 60), priority=1), make_spec(3, tokens(1, 40))
    bench.submit(small)
    bench.submit(large)
    await bench.until_prefilled(large)
    await bench.store.release_sequences([2])
    await bench.until_prefilled(small)


async def test_random_prompts_are_answered_right_in_a_small_pool(benches: Callable[..., Bench]):
    bench = benches(num_blocks=24, reserve_blocks=2, max_sequences=4, ahead_blocks=2)
    specs = [
        make_spec(number, [*tokens(number % 3, (number * 5) % 37), *tokens(number, number % 4 + 1)])
        for number in range(1, 60)
    ]
    for spec in specs:
        bench.submit(spec)
    for spec in specs:
        await bench.until_prefilled_with_retries(spec)
        await bench.store.release_sequences([spec.lease_id])
    num_tokens = sum(len(spec.token_ids) for spec in specs)
    assert bench.num_computed() < num_tokens

"""What every CacheStore does: memd's own, and the client's against memd's real gRPC server."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

import pytest

from services.memd.cache import MAX_EVENTS
from tandem.errors import NotFoundError, NotReadyError, PinQuotaError, SlowReaderError
from tandem.kv.cache_store import CacheNews, CachePosition, CacheStore
from tandem.kv.contents import domain_of
from tandem.kv.journal import CAPACITY, BlockRemoved, BlockStored, CacheCleared
from tandem.kv.outcomes import Withdrawal
from tandem.kv.store import KeyedBlock, SequenceUpdate
from tandem.rpc.cache_client import CacheClient
from tandem.types import ContentKind
from tests.support.contents import NAMESPACE, entry, key, keyed, keyed_run, prompts_of
from tests.support.memd import BLOCK_SIZE, FINGERPRINT, NUM_PINNABLE_BLOCKS, LocalMemd, local_memd


@dataclass
class Subject:
    store: CacheStore
    memd: LocalMemd
    num_leases: int = 0

    async def publish(self, *numbers: int) -> int:
        """The lease that has these blocks of the imagined prompt."""
        return await self.publish_keyed(*(keyed(number, ordinal) for ordinal, number in enumerate(numbers)))

    async def publish_keyed(self, *publish: KeyedBlock) -> int:
        """A lease that has these blocks."""
        store = self.memd.store
        holder_id = store.attach("prefill", 1, FINGERPRINT).holder_id
        self.num_leases += 1
        await store.acquire_sequence(holder_id, self.num_leases, "r", create=True)
        blocks = await store.lease_blocks(holder_id, len(publish))
        update = SequenceUpdate(self.num_leases, blocks, len(blocks) * BLOCK_SIZE, publish)
        await store.update_sequences(holder_id, [update])
        return self.num_leases

    async def keep(self, *numbers: int) -> None:
        await self.memd.store.release_sequences([await self.publish(*numbers)])

    async def keep_keyed(self, *publish: KeyedBlock) -> None:
        await self.memd.store.release_sequences([await self.publish_keyed(*publish)])


@pytest.fixture(params=["local", "grpc"])
async def subject(request) -> AsyncIterator[Subject]:
    async with local_memd() as memd, AsyncExitStack() as stack:
        if request.param == "local":
            yield Subject(memd.store.cache, memd)
        else:
            yield Subject(await stack.enter_async_context(CacheClient(memd.address)), memd)
        memd.ledger.check()


async def test_what_is_kept_is_listed(subject: Subject):
    assert await subject.store.runs() == ()
    await subject.keep(0, 1)
    subject.memd.clock.advance(5.0)
    (run,) = await subject.store.runs()
    assert (run.namespace, run.key, run.first_ordinal, run.num_blocks) == (NAMESPACE, key(1), 0, 2)
    assert (run.num_leased_blocks, run.num_hits, run.pinned, run.idle_s) == (0, 0, False, 5.0)


async def test_blocks_are_pinned_within_the_quota(subject: Subject):
    await subject.keep(*range(NUM_PINNABLE_BLOCKS + 1))
    keys = [*map(key, range(NUM_PINNABLE_BLOCKS + 1))]
    with pytest.raises(PinQuotaError, match=f"0 of {NUM_PINNABLE_BLOCKS} blocks"):
        await subject.store.pin(keys)
    with pytest.raises(NotFoundError, match="1 of 2 blocks are not in the cache"):
        await subject.store.pin([key(0), key(99)])
    assert await subject.store.pin(keys[:2]) == 2
    assert await subject.store.pin(keys[:3]) == 1
    assert [(run.num_blocks, run.pinned) for run in await subject.store.runs()] == [(3, True), (2, False)]
    statistics = await subject.memd.store.statistics()
    assert (statistics.num_pinned_blocks, statistics.num_pinnable_blocks) == (3, NUM_PINNABLE_BLOCKS)


async def test_a_namespace_or_everything_is_removed(subject: Subject):
    await subject.keep(0, 1)
    assert await subject.store.remove(b"O" * 32) == Withdrawal(0, 0)
    await subject.publish(10)
    assert await subject.store.remove(NAMESPACE) == Withdrawal(2, 1)
    await subject.keep(0)
    assert await subject.store.remove_all() == Withdrawal(1, 0)
    assert await subject.store.runs() == ()


async def test_segments_are_listed_as_such_and_go_with_their_namespace(subject: Subject):
    prompts = prompts_of("private:a")
    await subject.keep_keyed(*keyed_run(prompts, range(4)))
    await subject.keep_keyed(*entry("private:a", range(8)))
    runs = await subject.store.runs()
    assert {run.kind: run.num_blocks for run in runs} == {ContentKind.PROMPT: 1, ContentKind.SEGMENT: 2}
    assert await subject.store.remove(prompts) == Withdrawal(3, 0)
    assert await subject.store.runs() == ()


async def test_a_domain_is_removed_whatever_its_salts(subject: Subject):
    for domain in ("private:a", "private:b"):
        for salt in ("", "x"):
            await subject.keep_keyed(*keyed_run(prompts_of(domain, salt), range(4)))
            await subject.keep_keyed(*entry(domain, range(4), salt))
    assert await subject.store.remove_domain(domain_of(prompts_of("private:a"))) == Withdrawal(4, 0)
    left = {run.namespace for run in await subject.store.runs()}
    assert {domain_of(namespace) for namespace in left} == {domain_of(prompts_of("private:b"))}
    assert len(left) == 4
    assert await subject.store.remove_domain(domain_of(prompts_of("private:a"))) == Withdrawal(0, 0)


async def until_told(watch: AsyncGenerator[CacheNews, None]) -> list[CacheNews]:
    """What is there, when a watch begins."""
    told = [await anext(watch)]
    while told[-1].position is None:
        told.append(await anext(watch))
    return told


async def test_a_watch_tells_what_is_there_and_then_every_change(subject: Subject):
    await subject.keep(0)
    async with aclosing(subject.store.watch(None)) as watch:
        (all_there,) = await until_told(watch)
        first = BlockStored(NAMESPACE, NAMESPACE, key(0))
        assert (all_there.events, all_there.block_size) == ((CacheCleared(), first), BLOCK_SIZE)
        await subject.keep(0, 1)
        news = await anext(watch)
        assert news.events == (BlockStored(NAMESPACE, key(0), key(1)),)
        assert news.position == CachePosition(all_there.position.stream_id, all_there.position.number + 1)
        await subject.store.remove(NAMESPACE)
        assert (await anext(watch)).events == (BlockRemoved(key(0)), BlockRemoved(key(1)))


async def test_a_watch_goes_on_where_another_ended(subject: Subject):
    async with aclosing(subject.store.watch(None)) as watch:
        (news,) = await until_told(watch)
    await subject.keep(0, 1)
    async with aclosing(subject.store.watch(news.position)) as watch:
        assert [event.key for event in (await anext(watch)).events] == [key(0), key(1)]


@pytest.mark.parametrize("missing", ["too much", "another memd"])
async def test_a_watch_that_cannot_go_on_begins_with_what_is_there(subject: Subject, missing: str):
    async with aclosing(subject.store.watch(None)) as watch:
        (news,) = await until_told(watch)
    after = news.position
    if missing == "too much":
        for _ in range(CAPACITY + 1):
            subject.memd.ledger.published.journal.note(BlockRemoved(key(9)))
    else:
        after = CachePosition(after.stream_id ^ 1, after.number)
    await subject.keep(0)
    async with aclosing(subject.store.watch(after)) as watch:
        (news,) = await until_told(watch)
        assert [type(event) for event in news.events] == [CacheCleared, BlockStored]


async def test_a_reader_who_falls_behind_is_ended(subject: Subject):
    async with aclosing(subject.store.watch(None)) as watch:
        await until_told(watch)
        for _ in range(CAPACITY + 1):
            subject.memd.ledger.published.journal.note(BlockRemoved(key(9)))
        with pytest.raises(SlowReaderError, match="more has happened in the cache than is remembered"):
            await anext(watch)


async def test_many_events_come_in_several_pieces(subject: Subject):
    async with aclosing(subject.store.watch(None)) as watch:
        (news,) = await until_told(watch)
        for _ in range(MAX_EVENTS + 1):
            subject.memd.ledger.published.journal.note(BlockRemoved(key(9)))
        pieces = [await anext(watch), await anext(watch)]
        assert [len(piece.events) for piece in pieces] == [MAX_EVENTS, 1]
        assert pieces[1].position.number == news.position.number + MAX_EVENTS + 1


async def test_a_watch_ends_with_memd(subject: Subject):
    async with aclosing(subject.store.watch(None)) as watch:
        await until_told(watch)
        subject.memd.store.close()
        with pytest.raises((StopAsyncIteration, NotReadyError)):
            await anext(watch)

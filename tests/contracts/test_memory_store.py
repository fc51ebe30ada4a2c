"""What every MemoryStore does: memd's own, and the client's against memd's real gRPC server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from tandem.errors import FingerprintMismatchError, LeaseError, NotFoundError, StaleBlockError
from tandem.kv.contents import domain_of
from tandem.kv.occupants import ANYBODYS, NOBODYS
from tandem.kv.store import CopySource, KeyedBlock, MemoryStore, PromptTokens, SequenceUpdate
from tandem.rpc.memd_client import MemdClient
from tandem.types import Block, Fingerprint
from tests.support.contents import NAMESPACE, block_tokens, entry, key, keyed, prompts_of
from tests.support.memd import (
    BLOCK_SIZE,
    FINGERPRINT,
    MAX_SEGMENT_BLOCKS,
    NUM_BLOCKS,
    NUM_RESERVE_BLOCKS,
    TTL_S,
    LocalMemd,
    local_memd,
)


@dataclass
class Holder:
    """An attachment of either kind."""

    holder_id: int
    next_reclaim: Callable[[], Awaitable[int]]
    detach: Callable[[], Awaitable[None]]


@dataclass
class Subject:
    store: MemoryStore
    attach: Callable[..., Awaitable[Holder]]
    memd: LocalMemd

    async def keep(self, holder: Holder, lease_id: int, *publish: KeyedBlock) -> tuple[Block, ...]:
        """Cached blocks, which were computed in that lease."""
        await self.store.acquire_sequence(holder.holder_id, lease_id, "r", create=True)
        blocks = await self.store.lease_blocks(holder.holder_id, len(publish))
        update = SequenceUpdate(lease_id, blocks, len(blocks) * BLOCK_SIZE, publish)
        assert await self.store.update_sequences(holder.holder_id, [update]) == frozenset()
        await self.store.release_sequences([lease_id])
        return blocks


def local(memd: LocalMemd) -> Subject:
    async def attach(service: str, claim: Fingerprint = FINGERPRINT) -> Holder:
        attachment = memd.store.attach(service, 1, claim)

        async def detach() -> None:
            memd.store.detach(attachment)

        return Holder(attachment.holder_id, attachment.next_reclaim, detach)

    return Subject(memd.store, attach, memd)


def remote(memd: LocalMemd, client: MemdClient, stack: AsyncExitStack) -> Subject:
    async def attach(service: str, claim: Fingerprint = FINGERPRINT) -> Holder:
        attachment = await client.attach(service, 1, claim)
        stack.push_async_callback(attachment.detach)

        async def detach() -> None:
            await attachment.detach()
            while memd.store.is_attached(attachment.holder_id):
                await asyncio.sleep(0)

        return Holder(attachment.holder_id, attachment.next_reclaim, detach)

    return Subject(client, attach, memd)


@asynccontextmanager
async def subject_of(kind: str) -> AsyncIterator[Subject]:
    async with local_memd() as memd, AsyncExitStack() as stack:
        if kind == "local":
            yield local(memd)
        else:
            client = MemdClient(memd.address)
            stack.push_async_callback(client.close)
            yield remote(memd, client, stack)
        memd.ledger.check()


@pytest.fixture(params=["local", "grpc"])
async def subject(request) -> AsyncIterator[Subject]:
    async with subject_of(request.param) as made:
        yield made


async def test_blocks_are_leased_returned_and_never_given_twice(subject):
    one, two = await subject.attach("prefill"), await subject.attach("decode")
    mine = await subject.store.lease_blocks(one.holder_id, 5)
    theirs = await subject.store.lease_blocks(two.holder_id, 5)
    assert len({block.block_id for block in mine + theirs}) == 10
    await subject.store.return_blocks(one.holder_id, mine)
    again = await subject.store.lease_blocks(two.holder_id, 100)
    assert len(again) == NUM_BLOCKS - 5
    assert not set(again) & set(mine), "a block came back with its old generation"


async def test_prefill_leaves_the_reserve(subject):
    prefill, decode = await subject.attach("prefill"), await subject.attach("decode")
    assert len(await subject.store.lease_blocks(prefill.holder_id, 100)) == NUM_BLOCKS - NUM_RESERVE_BLOCKS
    assert await subject.store.lease_blocks(prefill.holder_id, 1) == ()
    assert len(await subject.store.lease_blocks(decode.holder_id, 100)) == NUM_RESERVE_BLOCKS


async def test_what_is_missing_is_asked_back_from_the_others(subject):
    prefill, decode = await subject.attach("prefill"), await subject.attach("decode")
    spare = await subject.store.lease_blocks(prefill.holder_id, 12)
    assert len(await subject.store.lease_blocks(decode.holder_id, 7)) == 4
    assert await prefill.next_reclaim() == 3
    await subject.store.return_blocks(prefill.holder_id, spare[:3])
    assert len(await subject.store.lease_blocks(decode.holder_id, 3)) == 3
    waiting = asyncio.ensure_future(prefill.next_reclaim())
    await subject.store.lease_blocks(decode.holder_id, 2)
    assert await waiting == 2


async def test_a_sequence_goes_from_prefill_to_decode(subject):
    prefill, decode = await subject.attach("prefill"), await subject.attach("decode")
    assert (await subject.store.acquire_sequence(prefill.holder_id, 7, "r", create=True)).blocks == ()
    blocks = await subject.store.lease_blocks(prefill.holder_id, 3)
    update = SequenceUpdate(7, blocks, 2 * BLOCK_SIZE + 1)
    assert await subject.store.update_sequences(prefill.holder_id, [update]) == frozenset()
    lease = await subject.store.acquire_sequence(decode.holder_id, 7, "r", create=False)
    assert (lease.lease_id, lease.blocks, lease.num_sealed_tokens) == (7, blocks, 2 * BLOCK_SIZE + 1)
    late = SequenceUpdate(7, (), 3 * BLOCK_SIZE)
    assert await subject.store.update_sequences(prefill.holder_id, [late]) == {7}
    assert await subject.store.update_sequences(decode.holder_id, [late]) == frozenset()
    assert await subject.store.release_sequences([7, 8]) == 3
    assert await subject.store.update_sequences(decode.holder_id, [late]) == {7}


async def test_errors_have_their_types(subject):
    holder = await subject.attach("decode")
    (block,) = await subject.store.lease_blocks(holder.holder_id, 1)
    with pytest.raises(NotFoundError, match="lease 9 "):
        await subject.store.acquire_sequence(holder.holder_id, 9, "r", create=False)
    with pytest.raises(NotFoundError, match="holder 999"):
        await subject.store.lease_blocks(999, 1)
    with pytest.raises(StaleBlockError):
        await subject.store.return_blocks(holder.holder_id, [Block(block.block_id, block.generation + 1)])
    with pytest.raises(LeaseError):
        await subject.store.return_blocks(holder.holder_id, [block, block])
    with pytest.raises(NotFoundError, match="lease 9 "):
        await subject.store.fork_sequence(9, 10, "r", 4)


async def test_a_fork_shares_and_both_are_released(subject):
    holder = await subject.attach("prefill")
    blocks = await subject.store.lease_blocks(holder.holder_id, 3)
    await subject.store.acquire_sequence(holder.holder_id, 1, "r", create=True)
    await subject.store.update_sequences(holder.holder_id, [SequenceUpdate(1, blocks, 11)])
    assert await subject.store.fork_sequence(1, 2, "r", 10) == 8
    with pytest.raises(LeaseError, match="exists"):
        await subject.store.fork_sequence(1, 2, "r", 10)
    child = await subject.store.acquire_sequence(holder.holder_id, 2, "r", create=False)
    assert (child.blocks, child.num_sealed_tokens) == (blocks[:2], 8)
    assert await subject.store.release_sequences([1]) == 1
    assert await subject.store.release_sequences([2]) == 2


async def test_a_gone_holder_gives_its_spare_blocks_back_and_keeps_its_sequences(subject):
    holder = await subject.attach("decode")
    blocks = await subject.store.lease_blocks(holder.holder_id, 6)
    await subject.store.acquire_sequence(holder.holder_id, 1, "r", create=True)
    await subject.store.update_sequences(holder.holder_id, [SequenceUpdate(1, blocks[:2], 8)])
    await holder.detach()
    statistics = await subject.store.statistics()
    assert (statistics.num_free_blocks, statistics.num_spare_blocks, statistics.num_leased_blocks) == (14, 0, 2)
    assert statistics.holders == ()
    after = await subject.attach("decode")
    lease = await subject.store.acquire_sequence(after.holder_id, 1, "r", create=False)
    assert lease.blocks == blocks[:2]


async def test_leases_end_when_nobody_renews_them(subject):
    holder = await subject.attach("decode")
    for lease_id in (1, 2):
        await subject.store.acquire_sequence(holder.holder_id, lease_id, "r", create=True)
    await holder.detach()
    subject.memd.clock.advance(TTL_S)
    assert await subject.store.renew_sequences([2, 3]) == {3}
    subject.memd.clock.advance(1.0)
    assert subject.memd.store.expire() == 1
    assert await subject.store.renew_sequences([1, 2]) == {1}


async def test_statistics_tell_everything(subject):
    holder = await subject.attach("decode")
    blocks = await subject.store.lease_blocks(holder.holder_id, 5)
    await subject.store.acquire_sequence(holder.holder_id, 1, "r", create=True)
    await subject.store.update_sequences(holder.holder_id, [SequenceUpdate(1, blocks[:2], 8)])
    statistics = await subject.store.statistics()
    assert statistics == subject.memd.store.current_statistics()
    assert statistics.fingerprint == FINGERPRINT
    assert (statistics.num_reserve_blocks, statistics.lease_ttl_s) == (NUM_RESERVE_BLOCKS, TTL_S)
    (told,) = statistics.holders
    assert (told.service, told.pid, told.num_spare_blocks, told.num_sequences) == ("decode", 1, 3, 1)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (Fingerprint(dtype="float32"), "dtype: decode has 'float32', memd has 'bfloat16'"),
        (Fingerprint(num_blocks=17), "num_blocks: decode has 17, memd has 16"),
        (Fingerprint(model_digest="x", layout="y"), "model_digest: .*'x'.*'digest'; layout: .*'y'"),
    ],
)
async def test_a_claim_that_does_not_fit_is_refused_with_both_values(subject, claim, message):
    with pytest.raises(FingerprintMismatchError, match=message):
        await subject.attach("decode", claim)
    assert (await subject.store.statistics()).holders == ()


async def test_a_phase_of_another_release_fits_the_same_layout(subject):
    await subject.attach("decode", replace(FINGERPRINT, version="of another release"))
    assert len((await subject.store.statistics()).holders) == 1


async def test_no_claim_fits_everything(subject):
    await subject.attach("decode", Fingerprint())
    assert len((await subject.store.statistics()).holders) == 1


async def test_published_blocks_are_claimed_by_their_keys(subject: Subject):
    one, other = await subject.attach("prefill"), await subject.attach("prefill")
    store = subject.store
    keys = [key(number) for number in range(3)]
    await store.acquire_sequence(one.holder_id, 1, "a", create=True)
    blocks = await store.lease_blocks(one.holder_id, 3)
    publish = (keyed(0), keyed(1))
    await store.update_sequences(one.holder_id, [SequenceUpdate(1, blocks, 2 * BLOCK_SIZE + 1, publish)])
    await store.release_sequences([1])
    assert (await store.statistics()).num_cached_blocks == 2
    await store.acquire_sequence(other.holder_id, 2, "b", create=True)
    with pytest.raises(LeaseError, match=f"worked on by holder {other.holder_id}"):
        await store.claim_prefix(one.holder_id, 2, keys)
    lease = await store.claim_prefix(other.holder_id, 2, keys)
    assert (lease.blocks, lease.num_sealed_tokens) == (blocks[:2], 2 * BLOCK_SIZE)
    statistics = await store.statistics()
    assert (statistics.num_cached_blocks, statistics.num_leased_blocks) == (0, 2)
    assert (statistics.num_asked_blocks, statistics.num_claimed_blocks) == (3, 2)
    assert (await store.claim_prefix(other.holder_id, 2, [])).blocks == ()
    assert (await store.statistics()).num_cached_blocks == 2
    with pytest.raises(NotFoundError):
        await store.claim_prefix(other.holder_id, 3, keys)


async def test_what_begins_a_published_block_can_be_copied_while_that_is_there(subject: Subject):
    holder = await subject.attach("decode")
    store = subject.store
    await store.acquire_sequence(holder.holder_id, 1, "a", create=True)
    blocks = await store.lease_blocks(holder.holder_id, 2)
    publish = (keyed(0), keyed(1))
    await store.update_sequences(holder.holder_id, [SequenceUpdate(1, blocks, 2 * BLOCK_SIZE, publish)])
    await store.release_sequences([1])
    await store.acquire_sequence(holder.holder_id, 2, "b", create=True)
    prompt = PromptTokens(NAMESPACE, (*block_tokens(0), *block_tokens(1)[:3]))
    lease = await store.claim_prefix(holder.holder_id, 2, [key(0)], prompt)
    assert lease.copy_source == CopySource(blocks[1], 3)
    (own,) = await store.lease_blocks(holder.holder_id, 1)
    update = SequenceUpdate(2, (own,), BLOCK_SIZE + 3, copied_from=(lease.copy_source.block,))
    assert await store.update_sequences(holder.holder_id, [update]) == frozenset()
    assert len(await store.lease_blocks(holder.holder_id, NUM_BLOCKS)) == NUM_BLOCKS - 2  # the source is given away
    later = SequenceUpdate(2, (), BLOCK_SIZE + 4, copied_from=(lease.copy_source.block,))
    assert await store.update_sequences(holder.holder_id, [later]) == {2}
    assert await store.update_sequences(holder.holder_id, [SequenceUpdate(2, (), BLOCK_SIZE + 4)]) == {2}
    statistics = await store.statistics()
    assert (statistics.num_asked_tokens, statistics.num_claimed_tokens) == (BLOCK_SIZE + 3, BLOCK_SIZE + 3)
    assert statistics.num_evictions == 1


async def test_an_abandoned_lease_ends_when_nobody_holds_it(subject: Subject):
    holder = await subject.attach("prefill")
    store = subject.store
    await store.acquire_sequence(holder.holder_id, 1, "a", create=True)
    blocks = await store.lease_blocks(holder.holder_id, 2)
    await store.update_sequences(holder.holder_id, [SequenceUpdate(1, blocks, 3)])
    await store.abandon_sequences([1, 2])
    assert (await store.statistics()).num_leased_blocks == 2
    assert not await store.update_sequences(holder.holder_id, [SequenceUpdate(1, (), 0, let_go=True)])
    assert (await store.statistics()).num_free_blocks == NUM_BLOCKS


async def test_runs_of_published_blocks_are_found_as_far_as_they_go(subject: Subject):
    holder = await subject.attach("prefill")
    blocks = await subject.keep(holder, 1, keyed(0), keyed(1), keyed(2))
    others = await subject.keep(holder, 2, *entry("private:a", range(8)))
    runs = [
        [key(0), key(1), key(9), key(2)],
        [],
        [key(9), key(0)],
        [each.key for each in entry("private:a", range(12))],
        [key(2)],
    ]
    assert await subject.store.find_blocks(holder.holder_id, runs) == (blocks[:2], (), (), others, blocks[2:])
    assert await subject.store.find_blocks(holder.holder_id, []) == ()
    elsewhere = [each.key for each in entry("private:b", range(8))]
    assert await subject.store.find_blocks(holder.holder_id, [elsewhere]) == ((),)
    assert (await subject.store.statistics()).num_cached_blocks == 5, "what was found is in no lease"


async def test_what_was_found_is_given_up_after_all_else(subject: Subject):
    holder = await subject.attach("decode")
    await subject.keep(holder, 1, keyed(0), keyed(1))
    await subject.keep(holder, 2, keyed(10, ordinal=0))
    found = await subject.store.find_blocks(holder.holder_id, [[key(0), key(1)]])
    await subject.store.lease_blocks(holder.holder_id, NUM_BLOCKS - 2)
    assert await subject.store.find_blocks(holder.holder_id, [[key(0), key(1)], [key(10)]]) == (*found, ())
    await subject.store.lease_blocks(holder.holder_id, 1)
    assert await subject.store.find_blocks(holder.holder_id, [[key(0), key(1)]]) == (found[0][:1],), "from its end"


async def test_only_a_holder_finds_blocks(subject: Subject):
    holder = await subject.attach("prefill")
    await subject.keep(holder, 1, keyed(0))
    await holder.detach()
    with pytest.raises(NotFoundError, match=f"holder {holder.holder_id} is not attached"):
        await subject.store.find_blocks(holder.holder_id, [[key(0)]])


async def test_a_copy_of_several_blocks_counts_while_all_of_them_are_there(subject: Subject):
    holder = await subject.attach("decode")
    store = subject.store
    sources = await subject.keep(holder, 1, keyed(0), keyed(1), keyed(2))
    for lease_id in (2, 3):
        await store.acquire_sequence(holder.holder_id, lease_id, "r", create=True)
    own = await store.lease_blocks(holder.holder_id, 3)
    update = SequenceUpdate(2, own[:1], BLOCK_SIZE, copied_from=sources)
    assert await store.update_sequences(holder.holder_id, [update]) == frozenset()
    await store.lease_blocks(holder.holder_id, NUM_BLOCKS - 3 - 2)  # the last of the sources goes
    spoilt = SequenceUpdate(2, own[1:2], 2 * BLOCK_SIZE, (keyed(50, ordinal=1),), copied_from=sources)
    sound = SequenceUpdate(3, own[2:], BLOCK_SIZE, (keyed(60, ordinal=0),), copied_from=sources[:2])
    assert await store.update_sequences(holder.holder_id, [spoilt, sound]) == {2}
    found = await store.find_blocks(holder.holder_id, [[key(50)], [key(60)], [key(0), key(1), key(2)]])
    assert found == ((), own[2:], sources[:2])
    lease = await store.acquire_sequence(holder.holder_id, 2, "r", create=False)
    assert (lease.blocks, lease.num_sealed_tokens) == (own[:1], BLOCK_SIZE)


async def test_segments_keep_to_their_quota_and_a_copy_of_what_had_to_go_counts_until_it_is_anothers(subject: Subject):
    holder = await subject.attach("decode")
    entries = [entry("private:a", range(start, start + 8)) for start in (0, 100, 200)]
    first, *_ = [await subject.keep(holder, 1 + number, *each) for number, each in enumerate(entries)]
    statistics = await subject.store.statistics()
    assert (statistics.num_segment_blocks, statistics.max_segment_blocks) == (MAX_SEGMENT_BLOCKS, MAX_SEGMENT_BLOCKS)
    keys = [[block.key for block in each] for each in entries]
    found = await subject.store.find_blocks(holder.holder_id, keys)
    assert [len(blocks) for blocks in found] == [0, 2, 2]
    await subject.store.acquire_sequence(holder.holder_id, 9, "r", create=True)
    update = SequenceUpdate(9, (), 0, copied_from=first)
    assert await subject.store.update_sequences(holder.holder_id, [update]) == frozenset()
    await subject.store.lease_blocks(holder.holder_id, NUM_BLOCKS - MAX_SEGMENT_BLOCKS)
    assert await subject.store.update_sequences(holder.holder_id, [update]) == {9}


async def test_nothing_of_a_removed_namespace_is_found_and_the_copy_from_it_is_vetoed_in_time(subject: Subject):
    holder = await subject.attach("decode")
    mine, theirs = entry("private:a", range(8)), entry("private:b", range(8))
    blocks = await subject.keep(holder, 1, *mine)
    kept = await subject.keep(holder, 2, *theirs)
    await subject.memd.store.cache.remove(mine[0].namespace)
    keys = [[each.key for each in run] for run in (mine, theirs)]
    assert await subject.store.find_blocks(holder.holder_id, keys) == ((), kept)
    await subject.store.acquire_sequence(holder.holder_id, 3, "r", create=True)
    await subject.store.lease_blocks(holder.holder_id, NUM_BLOCKS - 2)
    update = SequenceUpdate(3, (), 0, copied_from=blocks)
    assert await subject.store.update_sequences(holder.holder_id, [update]) == {3}


async def test_a_grant_says_whose_kv_a_block_may_hold(subject: Subject):
    prefill, decode = await subject.attach("prefill"), await subject.attach("decode")
    tenants = {lease_id: domain_of(prompts_of(f"private:{lease_id}")) for lease_id in (1, 2)}
    for lease_id, domain in tenants.items():
        await subject.store.acquire_sequence(prefill.holder_id, lease_id, "r", create=True, domain=domain)
    blocks = await subject.store.lease_blocks(prefill.holder_id, 3)
    assert {block.occupant for block in blocks} == {NOBODYS}
    await subject.store.update_sequences(prefill.holder_id, [SequenceUpdate(1, blocks, 2 * BLOCK_SIZE)])
    lease = await subject.store.acquire_sequence(decode.holder_id, 1, "r", create=False)
    assert [block.occupant for block in lease.blocks] == [NOBODYS, NOBODYS, ANYBODYS], "as far as nothing is sealed"
    await subject.store.release_sequences([1])
    granted = {
        block.block_id: block.occupant for block in await subject.store.lease_blocks(decode.holder_id, NUM_BLOCKS)
    }
    assert [granted[block.block_id] for block in blocks] == [tenants[1], tenants[1], ANYBODYS]

"""Who is attached after memd was started over an existing ledger."""

import pytest

from services.memd.holders import REATTACH_S
from services.memd.store import LocalStore
from tandem.clock import ManualClock
from tandem.errors import NotFoundError, NotReadyError, StaleBlockError, StorageLostError
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.kv.store import SequenceUpdate
from tests.support.memd import BLOCK_SIZE, FINGERPRINT, NUM_BLOCKS, make_facts


class Memds:
    """One ledger, and the memds that come after one another over it."""

    def __init__(self) -> None:
        self.clock = ManualClock(100.0)
        self.buffer = bytearray(ledger_bytes(NUM_BLOCKS, BLOCK_SIZE))
        Ledger.create(self.buffer, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, epoch=5)

    def next(self) -> LocalStore:
        return LocalStore(Ledger.open(self.buffer), make_facts(), self.clock)


@pytest.fixture
def memds() -> Memds:
    return Memds()


async def test_a_holder_that_attaches_again_has_what_it_had(memds):
    before = memds.next()
    holder = before.attach("decode", 1, FINGERPRINT).holder_id
    blocks = await before.lease_blocks(holder, 4)
    await before.acquire_sequence(holder, 7, "r", create=True)
    await before.update_sequences(holder, [SequenceUpdate(7, blocks[:1], 2)])
    again = memds.next()
    again.attach_again(holder)
    assert again.holding(holder).spare == frozenset(blocks[1:])
    assert again.holding(holder).lease_ids == {7}
    assert await again.update_sequences(holder, [SequenceUpdate(7, blocks[1:2], 5)]) == frozenset()


async def test_a_holder_that_has_not_attached_again_can_do_nothing_and_loses_nothing(memds):
    before = memds.next()
    holder = before.attach("decode", 1, FINGERPRINT).holder_id
    (block,) = await before.lease_blocks(holder, 1)
    again = memds.next()
    for call in (
        again.lease_blocks(holder, 1),
        again.return_blocks(holder, [block]),
        again.acquire_sequence(holder, 7, "r", True),
        again.claim_prefix(holder, 7, []),
        again.update_sequences(holder, []),
    ):
        with pytest.raises(NotReadyError, match="has not attached again yet"):
            await call
    other = again.attach("decode", 2, FINGERPRINT).holder_id
    assert len(await again.lease_blocks(other, NUM_BLOCKS)) == NUM_BLOCKS - 1
    memds.clock.advance(REATTACH_S)
    again.expire()
    again.attach_again(holder)
    assert again.holding(holder).spare == {block}


async def test_who_does_not_come_back_is_given_up(memds):
    holder = memds.next().attach("decode", 1, FINGERPRINT).holder_id
    again = memds.next()
    memds.clock.advance(REATTACH_S + 1)
    again.expire()
    with pytest.raises(StorageLostError, match=f"has given holder {holder} up"):
        again.attach_again(holder)
    with pytest.raises(NotFoundError):
        await again.lease_blocks(holder, 1)
    assert again.current_statistics().holders == ()


async def test_a_memd_that_ends_drops_nobody_and_takes_nobody(memds):
    before = memds.next()
    attachment = before.attach("decode", 1, FINGERPRINT)
    blocks = await before.lease_blocks(attachment.holder_id, 3)
    before.close()
    before.detach(attachment)
    for attach in (lambda: before.attach("decode", 2, FINGERPRINT), lambda: before.attach_again(attachment.holder_id)):
        with pytest.raises(NotReadyError, match="about to end"):
            attach()
    again = memds.next()
    again.attach_again(attachment.holder_id)
    assert again.holding(attachment.holder_id).spare == frozenset(blocks)


async def test_of_two_streams_of_a_holder_the_later_is_its_attachment(memds):
    store = memds.next()
    first = store.attach("decode", 1, FINGERPRINT)
    second = store.attach_again(first.holder_id)
    with pytest.raises(NotReadyError):
        await first.next_reclaim()
    store.detach(first)
    assert store.is_attached(first.holder_id)
    store.detach(second)
    assert not store.is_attached(first.holder_id)


async def test_a_reference_from_before_is_refused_once_its_block_is_anothers(memds):
    before = memds.next()
    holder = before.attach("decode", 1, FINGERPRINT).holder_id
    stale = await before.lease_blocks(holder, NUM_BLOCKS)
    await before.return_blocks(holder, stale)
    again = memds.next()
    again.attach_again(holder)
    fresh = await again.lease_blocks(holder, NUM_BLOCKS)
    assert {block.block_id for block in fresh} == {block.block_id for block in stale}
    await again.acquire_sequence(holder, 7, "r", create=True)
    with pytest.raises(StaleBlockError, match="is at generation 2, the reference at 1"):
        await again.update_sequences(holder, [SequenceUpdate(7, stale[:1], 1)])

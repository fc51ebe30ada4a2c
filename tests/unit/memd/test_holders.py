"""Who is attached after memd was started over an existing ledger."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from services.memd.holders import REATTACH_S, Holders, LocalAttachment
from services.memd.processes import Unwatched
from services.memd.store import LocalStore
from tandem.clock import ManualClock
from tandem.errors import NotFoundError, NotReadyError, StaleBlockError, StorageLostError
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.kv.store import HolderProcess, SequenceUpdate
from tests.support.memd import BLOCK_SIZE, FINGERPRINT, NUM_BLOCKS, make_facts


class Memds:
    """One ledger, and the memds that come after one another over it."""

    def __init__(self) -> None:
        self.clock = ManualClock(100.0)
        self.buffer = bytearray(ledger_bytes(NUM_BLOCKS, BLOCK_SIZE))
        Ledger.create(self.buffer, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, epoch=5)

    def next(self) -> LocalStore:
        return LocalStore(Ledger.open(self.buffer), make_facts(), self.clock)


class Mortals:
    """Processes whose ends are the test's to decide."""

    def __init__(self) -> None:
        self.gone: set[int] = set()
        self.waiting: dict[int, Callable[[], None]] = {}

    def watch(self, process: HolderProcess, ended: Callable[[], None]) -> "Mortals.Watch | Unwatched":
        if process.pid in self.gone:
            return Unwatched.ENDED
        self.waiting[process.pid] = ended
        return self.Watch(self, process.pid)

    @dataclass
    class Watch:
        mortals: "Mortals"
        pid: int

        def forget(self) -> None:
            self.mortals.waiting.pop(self.pid, None)


@pytest.fixture
def holders():
    """The same ledger's, of one memd after another; every holder is its own process."""
    clock, buffer = ManualClock(100.0), bytearray(ledger_bytes(NUM_BLOCKS, BLOCK_SIZE))
    Ledger.create(buffer, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, epoch=5)
    return lambda watch: (ledger := Ledger.open(buffer), Holders(ledger, clock, watch), clock)


def attached(ledger: Ledger, holders: Holders, pid: int) -> LocalAttachment:
    """With four spare blocks."""
    attachment = holders.attach("decode", pid)
    ledger.processes.note(attachment.holder_id, HolderProcess(pid, 1, 1))
    ledger.lease_blocks(attachment.holder_id, 4, 0)
    return attachment


def test_an_absent_holder_keeps_its_blocks_as_long_as_its_process_lives(holders):
    mortals = Mortals()
    ledger, subject, clock = holders(mortals.watch)
    attachment = attached(ledger, subject, 11)
    subject.detach(attachment)
    clock.advance(1000 * REATTACH_S)
    subject.give_up_absent()
    assert subject.absent == {attachment.holder_id}
    assert ledger.num_spare_by_holder() == {attachment.holder_id: 4}
    mortals.waiting[11]()
    assert (subject.absent, ledger.num_spare_by_holder()) == (frozenset(), {})
    with pytest.raises(StorageLostError):
        subject.attach_again(attachment.holder_id)


def test_who_attached_again_outlives_what_was_watched(holders):
    mortals = Mortals()
    ledger, subject, _ = holders(mortals.watch)
    attachment = attached(ledger, subject, 11)
    subject.detach(attachment)
    subject.attach_again(attachment.holder_id)
    assert (mortals.waiting, subject.absent) == ({}, frozenset())


def test_a_memd_that_starts_drops_the_dead_at_once_and_waits_for_the_living(holders):
    mortals = Mortals()
    ledger, before, _ = holders(mortals.watch)
    dead, living = attached(ledger, before, 11), attached(ledger, before, 12)
    before.close()
    mortals.gone.add(11)
    ledger, again, _ = holders(mortals.watch)
    assert ledger.num_spare_by_holder() == {living.holder_id: 4}
    assert again.absent == {living.holder_id}
    with pytest.raises(StorageLostError):
        again.attach_again(dead.holder_id)
    again.attach_again(living.holder_id)


def test_a_record_that_is_used_again_says_nothing_of_the_process_before(holders):
    ledger, subject, _ = holders(Mortals().watch)
    subject.leave(attached(ledger, subject, 11).holder_id)
    assert ledger.num_spare_by_holder() == {}
    assert ledger.processes.get(subject.attach("prefill", 12).holder_id) is None


def test_nothing_is_taken_from_an_absent_holder(holders):
    ledger, subject, clock = holders(Mortals().watch)
    attachment = attached(ledger, subject, 11)
    ledger.acquire_sequence(attachment.holder_id, 7, "r", create=True, now_s=clock.now())
    subject.detach(attachment)
    assert ledger.expire(clock.now() + 100.0, 30.0, subject.absent).revoked_lease_ids == ()
    assert ledger.expire(clock.now() + 100.0, 30.0).revoked_lease_ids == (7,)


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

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tandem.errors import NotReadyError, StaleBlockError
from tandem.kv.store import SequenceUpdate
from tandem.phase.crew import Crew
from tandem.phase.updates import LostLease, UpdateSender
from tandem.types import Block
from tests.support.fake_store import DECODE_HOLDER, FakeStore


@dataclass
class Bench:
    store: FakeStore
    sender: UpdateSender
    blocks: tuple[Block, ...]
    lost: list[LostLease] = field(default_factory=list)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    store, crew = FakeStore(8), Crew()
    lost: list[LostLease] = []
    sender = UpdateSender(store, DECODE_HOLDER, lost.append)
    crew.spawn(sender.run())
    for lease_id in (1, 2):
        await store.acquire_sequence(DECODE_HOLDER, lease_id, "r", create=True)
    yield Bench(store, sender, await store.lease_blocks(DECODE_HOLDER, 4), lost)
    await crew.cancel()


async def test_flush_returns_when_memd_knows(bench: Bench) -> None:
    bench.store.update_gate.clear()
    bench.sender.push(SequenceUpdate(1, bench.blocks[:1], 3))
    flushing = asyncio.create_task(bench.sender.flush())
    await asyncio.sleep(0)
    assert not flushing.done()
    bench.store.update_gate.set()
    await flushing
    assert bench.store.leases[1].num_sealed == 3


async def test_flush_with_nothing_pushed_returns_at_once(bench: Bench) -> None:
    await bench.sender.flush()
    assert bench.store.updates == []


async def test_updates_of_a_lease_are_merged_while_one_rpc_is_under_way(bench: Bench) -> None:
    bench.store.update_gate.clear()
    bench.sender.push(SequenceUpdate(1, bench.blocks[:1], 2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.sender.push(SequenceUpdate(1, bench.blocks[1:2], 4))
    bench.sender.push(SequenceUpdate(2, bench.blocks[2:3], 1))
    bench.sender.push(SequenceUpdate(1, (), 7))
    bench.store.update_gate.set()
    await bench.sender.flush()
    assert bench.store.updates == [
        (SequenceUpdate(1, bench.blocks[:1], 2),),
        (SequenceUpdate(1, bench.blocks[1:2], 7), SequenceUpdate(2, bench.blocks[2:3], 1)),
    ]


async def test_a_lost_lease_is_reported_with_its_blocks_before_flush_returns(bench: Bench) -> None:
    await bench.store.release_sequences([1])
    bench.sender.push(SequenceUpdate(1, bench.blocks[:2], 5))
    bench.sender.push(SequenceUpdate(2, bench.blocks[2:3], 2))
    await bench.sender.flush()
    assert bench.lost == [LostLease(1, bench.blocks[:2])]
    assert bench.store.leases[2].num_sealed == 2


async def test_what_was_not_sent_can_be_discarded(bench: Bench) -> None:
    bench.sender.push(SequenceUpdate(1, bench.blocks[:2], 5))
    assert bench.sender.discard(1) == bench.blocks[:2]
    assert bench.sender.discard(1) == ()
    await bench.sender.flush()
    assert bench.store.updates == []


async def test_memd_being_away_delays_and_loses_nothing(bench: Bench) -> None:
    bench.store.update_errors = [NotReadyError("away")]
    bench.sender.push(SequenceUpdate(1, bench.blocks[:1], 3))
    await bench.sender.flush()
    assert bench.store.leases[1].num_sealed == 3
    assert bench.lost == []


async def test_one_stale_block_does_not_spoil_the_others_of_its_batch(bench: Bench) -> None:
    stale = Block(bench.blocks[0].block_id, 77)
    bench.sender.push(SequenceUpdate(1, (stale,), 3))
    bench.sender.push(SequenceUpdate(2, bench.blocks[1:2], 3))
    await bench.sender.flush()
    assert bench.lost == [LostLease(1, ())]
    assert bench.store.leases[2].num_sealed == 3


async def test_an_error_of_the_batch_as_a_whole_is_tried_apart(bench: Bench) -> None:
    bench.store.update_errors = [StaleBlockError("one of them")]
    bench.sender.push(SequenceUpdate(1, bench.blocks[:1], 1))
    bench.sender.push(SequenceUpdate(2, bench.blocks[1:2], 1))
    await bench.sender.flush()
    assert bench.lost == []
    assert [lease.num_sealed for lease in bench.store.leases.values()] == [1, 1]

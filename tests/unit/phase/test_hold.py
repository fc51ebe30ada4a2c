"""What a phase has in memd, while memd is there and while it is not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tandem.device.memory import SegmentKind
from tandem.errors import NotReadyError, StorageLostError
from tandem.kv.store import Holding, SequenceUpdate
from tandem.phase.crew import Crew
from tandem.phase.hold import Hold
from tandem.phase.leases import Leases
from tandem.phase.supply import SupplyPolicy
from tandem.rpc.segments import ReceivedSegment
from tandem.types import Block
from tests.support.fake_store import DECODE_HOLDER, FakeStore

NOTHING = Holding(frozenset(), frozenset())


@dataclass
class Attachment:
    """memd's side, played by the test."""

    holding: Holding = NOTHING
    segments: dict[str, ReceivedSegment] = field(default_factory=dict)
    holder_id: int = DECODE_HOLDER
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    next: "asyncio.Queue[Attachment | Exception]" = field(default_factory=asyncio.Queue)
    reclaims: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    detached: bool = False

    async def attach_again(self) -> "Attachment":
        answer = await self.next.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def next_reclaim(self) -> int:
        if self.ended.is_set():
            raise NotReadyError("ended")
        return await self.reclaims.get()

    async def detach(self) -> None:
        self.detached = True


@dataclass
class Stage:
    store: FakeStore
    attachment: Attachment
    crew: Crew
    resumed: "asyncio.Queue[Holding]"
    connected: list[bool]
    hold: Hold


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    store, attachment, crew, connected = FakeStore(8), Attachment(), Crew(), list[bool]()
    hold, resumed = Hold(store, attachment, connected.append), asyncio.Queue[Holding]()
    crew.spawn(hold.run(resumed.put_nowait))
    await asyncio.sleep(0)
    yield Stage(store, attachment, crew, resumed, connected, hold)
    await crew.cancel()


async def until_away(hold: Hold) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await hold.lease_blocks(DECODE_HOLDER, 0)
            except NotReadyError:
                return


async def test_calls_go_through_while_memd_is_there_and_not_while_it_is_away(stage: Stage) -> None:
    assert len(await stage.hold.lease_blocks(DECODE_HOLDER, 2)) == 2
    stage.attachment.ended.set()
    await until_away(stage.hold)
    assert stage.connected == [True, False]
    stage.attachment.next.put_nowait(Attachment())
    assert await stage.resumed.get() == NOTHING
    assert len(await stage.hold.lease_blocks(DECODE_HOLDER, 2)) == 2
    assert stage.connected == [True, False, True]
    assert stage.attachment.detached, "its descriptors are closed"


async def test_nobody_attaches_again_while_a_call_is_under_way(stage: Stage) -> None:
    await stage.store.acquire_sequence(DECODE_HOLDER, 1, "r", create=True)
    stage.store.update_gate.clear()
    calling = asyncio.create_task(stage.hold.update_sequences(DECODE_HOLDER, [SequenceUpdate(1, (), 0)]))
    await asyncio.sleep(0)
    stage.attachment.ended.set()
    stage.attachment.next.put_nowait(Attachment())
    await until_away(stage.hold)
    assert stage.attachment.next.qsize() == 1
    stage.store.update_gate.set()
    await calling
    await stage.resumed.get()
    assert stage.attachment.next.empty()


async def test_what_memd_has_given_up_is_lost(stage: Stage) -> None:
    stage.attachment.ended.set()
    stage.attachment.next.put_nowait(NotReadyError("starting"))
    stage.attachment.next.put_nowait(StorageLostError("epoch 2, not 1"))
    with pytest.raises(StorageLostError, match="epoch 2"):
        await stage.crew.failure()


async def test_memory_that_ends_with_memd_is_lost_at_once() -> None:
    crew = Crew()
    kv = ReceivedSegment("kv", fd=-1, size_bytes=1, kind=SegmentKind.CUDA_IPC, sealed=False)
    attachment = Attachment(segments={"kv": kv})
    crew.spawn(Hold(FakeStore(8), attachment).run(lambda _: None))
    attachment.ended.set()
    with pytest.raises(StorageLostError, match="kv: memory of a kind that has ended with memd"):
        await crew.failure()
    await crew.cancel()


async def test_blocks_are_asked_back_by_whichever_memd_is_there(stage: Stage) -> None:
    asked = asyncio.create_task(stage.hold.next_reclaim())
    await asyncio.sleep(0)
    stage.attachment.reclaims.put_nowait(3)
    assert await asked == 3
    stage.attachment.ended.set()
    back = Attachment()
    stage.attachment.next.put_nowait(back)
    await stage.resumed.get()
    back.reclaims.put_nowait(4)
    assert await stage.hold.next_reclaim() == 4


@dataclass
class Scene:
    """Leases of which one has been updated and memd knows, and one whose update memd has not answered."""

    store: FakeStore
    leases: Leases
    crew: Crew
    blocks: tuple[Block, ...]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    store, crew = FakeStore(12), Crew()
    leases = Leases(store, DECODE_HOLDER, SupplyPolicy(4), lambda: None)
    blocks = await store.lease_blocks(DECODE_HOLDER, 4)
    leases.supply.give_back(blocks)
    crew.spawn(leases.updates.run())
    yield Scene(store, leases, crew, blocks)
    await crew.cancel()


async def test_a_grant_that_nobody_heard_of_is_spare_between_two_steps(scene: Scene) -> None:
    unheard = Block(11, 5)
    scene.leases.resume(Holding(frozenset({*scene.blocks, unheard}), frozenset()))
    assert scene.leases.supply.num_spare == 4
    assert scene.leases.collect_lost() == ()
    assert set(scene.leases.supply.take(5) or ()) == {*scene.blocks, unheard}


async def test_an_update_that_was_carried_out_is_sent_again_without_its_blocks(scene: Scene) -> None:
    await scene.store.acquire_sequence(DECODE_HOLDER, 1, "r", create=True)
    scene.store.update_gate.clear()
    first, second, *rest = scene.blocks
    assert scene.leases.grow(1, 2, 3) == (first, second)
    await asyncio.sleep(0)
    scene.store.spare[DECODE_HOLDER].discard(first)  # it was cut off after the first of its blocks
    scene.store.leases[1].blocks.append(first)
    scene.store.update_errors = [NotReadyError("away")]
    scene.store.update_gate.set()
    await asyncio.sleep(0)
    scene.leases.resume(Holding(frozenset({second, *rest}), frozenset({1})))
    await scene.leases.updates.flush()
    assert scene.store.leases[1].blocks == [first, second]
    assert scene.leases.collect_lost() == ()
    assert scene.leases.supply.num_spare == 2
    scene.store.check()


async def test_a_lease_that_memd_has_given_away_is_lost(scene: Scene) -> None:
    for lease_id in (1, 2):
        scene.leases._held[lease_id] = b""
    scene.leases.resume(Holding(frozenset(scene.blocks), frozenset({2})))
    assert scene.leases.collect_lost() == (1,)

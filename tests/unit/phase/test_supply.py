import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from tandem.errors import NotReadyError
from tandem.phase.crew import Crew
from tandem.phase.supply import BlockSupply, SupplyPolicy
from tandem.scheduler.demand import NO_DEMAND, BlockDemand
from tandem.types import Block
from tests.support.fake_store import PREFILL_HOLDER, FakeStore

SHORT = SupplyPolicy(ahead_blocks=8, first_retry_s=0.002, last_retry_s=0.004, lean_s=0.02)
ENDLESS = SupplyPolicy(ahead_blocks=8, first_retry_s=0.002, last_retry_s=0.004, lean_s=3600)


class Watch:
    """Wakes the test whenever the supply says that something has changed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def note(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def crew() -> AsyncIterator[Crew]:
    crew = Crew()
    yield crew
    await crew.cancel()


def start(store: FakeStore, crew: Crew, policy: SupplyPolicy = SHORT) -> tuple[BlockSupply, Watch]:
    watch = Watch()
    supply = BlockSupply(store, PREFILL_HOLDER, policy, watch.note)
    crew.spawn(supply.run())
    return supply, watch


async def test_blocks_are_leased_ahead_and_taken_without_waiting(crew: Crew) -> None:
    store = FakeStore(20)
    supply, watch = start(store, crew)
    assert supply.take(1) is None
    await watch.until(lambda: supply.num_spare == 8)
    taken = supply.take(3)
    assert taken is not None
    assert len(set(taken)) == 3
    assert set(taken) < store.spare[PREFILL_HOLDER]
    assert supply.take(6) is None
    assert supply.num_spare == 5


async def test_below_the_low_watermark_the_supply_is_filled_up(crew: Crew) -> None:
    store = FakeStore(40)
    supply, watch = start(store, crew)
    await watch.until(lambda: supply.num_spare == 8)
    supply.take(3)
    assert store.num_lease_calls == 1
    supply.take(1)
    await watch.until(lambda: supply.num_spare == 8)
    assert store.num_lease_calls == 2


async def test_a_demand_beyond_what_is_leased_ahead_is_met(crew: Crew) -> None:
    supply, watch = start(FakeStore(40), crew)
    supply.demand(BlockDemand(num_joining_blocks=25))
    await watch.until(lambda: supply.num_spare >= 25)


async def test_there_is_never_more_than_one_refill_under_way(crew: Crew) -> None:
    store = FakeStore(400)
    supply, watch = start(store, crew)
    for wanted in range(1, 120):
        supply.demand(BlockDemand(num_running_blocks=wanted))
        supply.take(1)
        await asyncio.sleep(0)
    await watch.until(lambda: supply.num_spare >= 119)
    assert store.most_lease_calls_under_way == 1


async def test_refusals_are_counted_and_a_grant_forgives_them(crew: Crew) -> None:
    store = FakeStore(20)
    store.refusing = True
    supply, watch = start(store, crew)
    supply.demand(BlockDemand(num_running_blocks=1))
    await watch.until(lambda: supply.num_refusals >= 3)
    store.refusing = False
    await watch.until(lambda: supply.num_spare > 0)
    assert supply.num_refusals == 0


async def test_a_new_want_is_asked_for_at_once_though_the_pool_has_refused(crew: Crew) -> None:
    store = FakeStore(20)
    store.refusing = True
    slow = SupplyPolicy(ahead_blocks=8, first_retry_s=3600, last_retry_s=3600)
    supply, watch = start(store, crew, slow)
    await watch.until(lambda: supply.num_refusals == 1)
    await asyncio.sleep(0)
    supply.demand(BlockDemand(num_running_blocks=1))
    await watch.until(lambda: supply.num_refusals == 2)


async def test_memd_being_away_is_no_refusal(crew: Crew) -> None:
    class AwayOnce(FakeStore):
        async def lease_blocks(self, holder_id: int, num_blocks: int) -> tuple[Block, ...]:
            if self.num_lease_calls == 0:
                self.num_lease_calls += 1
                raise NotReadyError("away")
            return await super().lease_blocks(holder_id, num_blocks)

    supply, watch = start(AwayOnce(20), crew)
    await watch.until(lambda: supply.num_spare == 8)
    assert supply.num_refusals == 0


async def test_a_reclaim_returns_the_surplus_and_stops_leasing_ahead(crew: Crew) -> None:
    store = FakeStore(20)
    supply, watch = start(store, crew, ENDLESS)
    await watch.until(lambda: supply.num_spare == 8)
    await supply.reclaim(5, num_kept=2)
    assert supply.num_spare == 3
    assert len(store.free) == 17
    await supply.reclaim(5, num_kept=2)
    assert supply.num_spare == 2
    supply.demand(BlockDemand(num_running_blocks=4))
    await watch.until(lambda: supply.num_spare == 4)


async def test_after_a_while_blocks_are_leased_ahead_again(crew: Crew) -> None:
    supply, watch = start(FakeStore(20), crew)
    await watch.until(lambda: supply.num_spare == 8)
    await supply.reclaim(8, num_kept=0)
    assert supply.num_spare == 0
    supply.demand(NO_DEMAND)
    await watch.until(lambda: supply.num_spare == 8)


async def test_blocks_returned_to_a_memd_that_went_away_are_spare_again_only_when_it_says_so(crew: Crew) -> None:
    class Away(FakeStore):
        async def return_blocks(self, holder_id: int, blocks: object) -> None:
            raise NotReadyError("away")

    store = Away(20)
    supply, watch = start(store, crew, ENDLESS)
    await watch.until(lambda: supply.num_spare == 8)
    await supply.reclaim(5, num_kept=0)
    assert supply.num_spare == 3
    mine = sorted(supply.take(3) or (), key=lambda block: block.block_id)
    supply.give_back(mine)
    returned = sorted(store.spare[PREFILL_HOLDER] - set(mine), key=lambda block: block.block_id)
    assert supply.resume(frozenset([*mine[1:], *returned[:2]])) == frozenset([*mine[1:], *returned[:2]])
    assert set(supply.take(4) or ()) == {*mine[1:], *returned[:2]}


async def test_a_memd_that_is_away_makes_its_refusals_void(crew: Crew) -> None:
    store = FakeStore(20)
    store.refusing = True
    supply, watch = start(store, crew)
    supply.demand(BlockDemand(num_running_blocks=1))
    await watch.until(lambda: supply.num_refusals >= 2)
    store.away = True
    async with asyncio.timeout(10):
        while not supply.memd_away:
            await asyncio.sleep(0.001)
    assert supply.num_refusals == 0
    store.away, store.refusing = False, False
    supply.resume(frozenset())
    await watch.until(lambda: supply.num_spare > 0)
    assert not supply.memd_away


async def test_blocks_that_come_back_can_be_taken_again(crew: Crew) -> None:
    supply, watch = start(FakeStore(8), crew)
    await watch.until(lambda: supply.num_spare == 8)
    blocks = supply.take(8)
    assert blocks is not None
    supply.give_back(blocks)
    assert set(supply.take(8) or ()) == set(blocks)

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.scheduler.decode import (
    BlockStock,
    DecodeCandidate,
    DecodePlan,
    Grant,
    PoolState,
    WaitingCandidates,
    plan_step,
)
from tandem.scheduler.demand import BlockDemand
from tandem.scheduler.rank import rank_key


def candidate(lease_id: int, *, held: int = 2, missing: int = 0, priority: int = 0) -> DecodeCandidate:
    """Arrives in the order of its id."""
    return DecodeCandidate(lease_id, priority, lease_id, held, missing)


def stock(spare: int, pool: PoolState = PoolState.OPEN, total: int = 100) -> BlockStock:
    return BlockStock(spare, total, pool)


def waiting_line(candidates: Iterable[DecodeCandidate]) -> WaitingCandidates:
    line = WaitingCandidates()
    for each in candidates:
        line.add(each)
    return line


def plan_of(
    running: Iterable[DecodeCandidate], waiting: Iterable[DecodeCandidate], stock: BlockStock, max_sequences: int
) -> DecodePlan:
    return plan_step(sorted(running, key=rank_key), waiting_line(waiting), stock, max_sequences)


def stepping(plan: DecodePlan) -> list[int]:
    return [grant.lease_id for grant in plan.grants]


def test_everyone_steps_and_the_waiting_join_when_blocks_suffice() -> None:
    plan = plan_of([candidate(1), candidate(2, missing=1)], [candidate(3, missing=1)], stock(2), 8)
    assert plan.grants == (Grant(1, 0), Grant(2, 1), Grant(3, 1))
    assert plan.demand.num_blocks == 0


def test_who_lacks_a_block_skips_the_step_while_the_pool_is_open() -> None:
    plan = plan_of([candidate(1, missing=1), candidate(2)], [candidate(3)], stock(0), 8)
    assert stepping(plan) == [2]
    assert plan.preempted == ()
    assert plan.demand.num_running_blocks == 1


def test_nobody_joins_while_a_running_sequence_lacks_a_block() -> None:
    plan = plan_of([candidate(1, missing=2), candidate(2, missing=1)], [candidate(3)], stock(1), 8)
    assert stepping(plan) == []


def test_the_lowest_priority_then_the_latest_arrival_is_preempted_from_a_dry_pool() -> None:
    running = [candidate(1, missing=1), candidate(2, priority=-1), candidate(3)]
    assert plan_of(running, [], stock(0, PoolState.DRY), 8).preempted == (2,)
    running[1] = candidate(2)
    assert plan_of(running, [], stock(0, PoolState.DRY), 8).preempted == (3,)


def test_a_waiting_sequence_is_preempted_before_an_older_running_one() -> None:
    plan = plan_of([candidate(1, missing=1), candidate(2)], [candidate(3)], stock(0, PoolState.DRY), 8)
    assert plan.preempted == (3,)
    assert stepping(plan) == [2]


def test_the_only_sequence_is_kept_until_the_pool_is_barren() -> None:
    alone = [candidate(1, missing=1)]
    assert plan_of(alone, [], stock(0, PoolState.DRY), 8).preempted == ()
    assert plan_of(alone, [], stock(0, PoolState.BARREN), 8).preempted == (1,)


def test_a_sequence_larger_than_the_pool_is_hopeless() -> None:
    plan = plan_of([candidate(1, held=4, missing=1), candidate(2)], [], stock(9, total=4), 8)
    assert plan.hopeless == (1,)
    assert stepping(plan) == [2]


def test_max_sequences_bounds_the_batch() -> None:
    plan = plan_of([candidate(1)], [candidate(2), candidate(3)], stock(9), 2)
    assert stepping(plan) == [1, 2]


candidates = st.lists(
    st.tuples(st.integers(-1, 1), st.integers(0, 4), st.integers(0, 6), st.integers(0, 2)), max_size=8
)


def build(entries: list[tuple[int, int, int, int]], first_id: int) -> list[DecodeCandidate]:
    return [DecodeCandidate(first_id + i, *entry) for i, entry in enumerate(entries)]


@given(candidates, candidates, st.integers(0, 6), st.sampled_from(PoolState), st.integers(1, 10))
def test_a_plan_spends_what_there_is_and_names_each_sequence_once(
    running_entries: list[tuple[int, int, int, int]],
    waiting_entries: list[tuple[int, int, int, int]],
    num_spare: int,
    pool: PoolState,
    max_sequences: int,
) -> None:
    running, waiting = build(running_entries, 0), build(waiting_entries, 100)
    running = running[:max_sequences]
    plan = plan_of(running, waiting, stock(num_spare, pool, total=6), max_sequences)
    everyone = {c.lease_id: c for c in (*running, *waiting)}
    named = [*stepping(plan), *plan.preempted, *plan.hopeless]
    assert len(named) == len(set(named))
    assert set(named) <= set(everyone)
    assert len(plan.grants) <= max_sequences
    assert sum(grant.num_blocks for grant in plan.grants) <= num_spare
    assert all(grant.num_blocks == everyone[grant.lease_id].num_missing_blocks for grant in plan.grants)
    survivors = [c for c in everyone.values() if c.lease_id not in plan.hopeless]
    if survivors and (len(survivors) > 1 or pool is not PoolState.BARREN):
        assert min(survivors, key=rank_key).lease_id not in plan.preempted
    if pool is PoolState.OPEN:
        assert plan.preempted == ()


@given(candidates.filter(bool), st.integers(0, 3))
def test_preemption_takes_no_more_than_the_shortage_asks_for(
    entries: list[tuple[int, int, int, int]], num_spare: int
) -> None:
    running = build(entries, 0)
    plan = plan_of(running, [], stock(num_spare, PoolState.DRY), 8)
    by_id = {c.lease_id: c for c in running}
    shortage = sum(c.num_missing_blocks for c in running) - num_spare
    relief = [by_id[v].num_held_blocks + by_id[v].num_missing_blocks for v in plan.preempted]
    if relief:
        assert sum(relief[:-1]) < shortage
    else:
        assert shortage <= 0 or len(running) == 1


@dataclass
class SmallPool:
    """Plays the pool, a supply that always hands over what is free, and the gateway that sends again."""

    total: int
    waiting: list[DecodeCandidate] = field(default_factory=list)
    running: list[DecodeCandidate] = field(default_factory=list)
    goal: dict[int, int] = field(default_factory=dict)

    @property
    def num_free(self) -> int:
        return self.total - sum(c.num_held_blocks for c in (*self.running, *self.waiting))

    def step(self, max_sequences: int) -> list[int]:
        plan = plan_of(self.running, self.waiting, BlockStock(self.num_free, self.total, PoolState.DRY), max_sequences)
        assert plan.hopeless == ()
        everyone = {c.lease_id: c for c in (*self.running, *self.waiting)}
        for lease_id in plan.preempted:
            lost = everyone.pop(lease_id)
            self.sent_again.append(replace(lost, num_held_blocks=0, num_missing_blocks=0))
        done = self._advance(everyone, plan)
        ids = {c.lease_id for c in self.running} | set(stepping(plan))
        self.running = [c for c in everyone.values() if c.lease_id in ids]
        self.waiting = [c for c in everyone.values() if c.lease_id not in ids]
        return done

    def _advance(self, everyone: dict[int, DecodeCandidate], plan: DecodePlan) -> list[int]:
        done = []
        for grant in plan.grants:
            stepped = everyone[grant.lease_id]
            held = stepped.num_held_blocks + grant.num_blocks
            if held >= self.goal[grant.lease_id]:
                done.append(grant.lease_id)
                del everyone[grant.lease_id]
            else:
                everyone[grant.lease_id] = replace(stepped, num_held_blocks=held, num_missing_blocks=1)
        return done

    sent_again: list[DecodeCandidate] = field(default_factory=list)

    def send_again(self) -> None:
        """Prefilled anew from nothing, when a block is free for it."""
        while self.sent_again and self.num_free > 1:
            self.waiting.append(replace(self.sent_again.pop(0), num_held_blocks=1, num_missing_blocks=0))


@given(
    st.lists(st.tuples(st.integers(-1, 1), st.integers(1, 5)), min_size=1, max_size=8),
    st.integers(5, 9),
    st.integers(1, 4),
)
def test_every_sequence_that_fits_the_pool_ends(entries: list[tuple[int, int]], total: int, max_sequences: int) -> None:
    """Each step every sequence grows by a whole block, which is worse than any real load."""
    pool = SmallPool(total)
    for lease_id, (priority, goal) in enumerate(entries):
        pool.goal[lease_id] = goal
        pool.sent_again.append(DecodeCandidate(lease_id, priority, lease_id, 0, 0))
    done: set[int] = set()
    for _ in range(400):
        pool.send_again()
        done.update(pool.step(max_sequences))
        if len(done) == len(entries):
            break
    assert done == set(pool.goal)


# --- against the same decisions made by sorting everything


def plan_by_force(
    running: Sequence[DecodeCandidate], waiting: Sequence[DecodeCandidate], stock: BlockStock, max_sequences: int
) -> DecodePlan:
    """Looks at all that waits, each time anew."""

    def in_order(candidates: Iterable[DecodeCandidate], without: Iterable[int]) -> list[DecodeCandidate]:
        return sorted((c for c in candidates if c.lease_id not in set(without)), key=rank_key)

    def total(c: DecodeCandidate) -> int:
        return c.num_held_blocks + c.num_missing_blocks

    hopeless = sorted(c.lease_id for c in (*running, *waiting) if total(c) > stock.num_pool_blocks)
    running, waiting = in_order(running, hopeless), in_order(waiting, hopeless)
    preempted = victims_by_force(running, waiting, stock)
    running, waiting = in_order(running, preempted), in_order(waiting, preempted)
    grants, stalled, left = [], [], stock.num_spare_blocks
    for c in running:
        if c.num_missing_blocks and (stalled or c.num_missing_blocks > left):
            stalled.append(c)
        else:
            left -= c.num_missing_blocks
            grants.append(Grant(c.lease_id, c.num_missing_blocks))
    lacking = 0
    for c in waiting[: 0 if stalled else max(0, max_sequences - len(running))]:
        if c.num_missing_blocks > left:
            lacking = c.num_missing_blocks
            break
        left -= c.num_missing_blocks
        grants.append(Grant(c.lease_id, c.num_missing_blocks))
    num_stalled = sum(c.num_missing_blocks for c in stalled)
    demand = BlockDemand(num_stalled, lacking) if running else BlockDemand(lacking, 0)
    return DecodePlan(tuple(grants), tuple(preempted), tuple(hopeless), demand)


def victims_by_force(running: list[DecodeCandidate], waiting: list[DecodeCandidate], stock: BlockStock) -> list[int]:
    wanting = {c.lease_id: c.num_missing_blocks for c in (running or waiting[:1])}
    shortage = sum(wanting.values()) - stock.num_spare_blocks
    if stock.pool is PoolState.OPEN or shortage <= 0:
        return []
    order = sorted((*running, *waiting), key=rank_key)
    if len(order) == 1:
        return [order[0].lease_id] if stock.pool is PoolState.BARREN else []
    victims = []
    for c in reversed(order[1:]):
        if shortage <= 0:
            break
        shortage -= c.num_held_blocks + wanting.get(c.lease_id, 0)
        victims.append(c.lease_id)
    return victims


many = st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 4), st.integers(0, 6), st.integers(0, 3)), max_size=14)


stocks = st.builds(BlockStock, st.integers(0, 8), st.integers(3, 12), st.sampled_from(PoolState))


@given(many, many, stocks, st.integers(0, 16))
@settings(max_examples=400)
def test_every_plan_is_that_of_sorting_everything(
    running_entries: list[tuple[int, int, int, int]],
    waiting_entries: list[tuple[int, int, int, int]],
    stock: BlockStock,
    max_sequences: int,
) -> None:
    running, waiting = build(running_entries, 0), build(waiting_entries, 100)
    planned = plan_of(running, waiting, stock, max_sequences)
    assert planned == plan_by_force(running, waiting, stock, max_sequences)


@given(many, st.lists(st.integers(0, 13), max_size=14))
def test_whoever_leaves_is_in_no_order_any_more(entries: list[tuple[int, int, int, int]], leaving: list[int]) -> None:
    candidates = build(entries, 0)
    line = waiting_line(candidates)
    for lease_id in leaving:
        line.discard(lease_id)
    left = [c for c in candidates if c.lease_id not in leaving]
    assert len(line) == len(left)
    assert list(line) == sorted(left, key=rank_key)
    assert list(reversed(line)) == sorted(left, key=rank_key, reverse=True)
    large = {c.lease_id for c in left if c.num_held_blocks + c.num_missing_blocks > 4}
    assert {c.lease_id for c in line.larger_than(4)} == large


def test_nobody_waits_twice() -> None:
    line = waiting_line([candidate(1)])
    with pytest.raises(ValueError, match="lease 1"):
        line.add(candidate(1, held=5))


class CountedCandidates(WaitingCandidates):
    """Counts who is looked at."""

    num_seen = 0

    def _counted(self, candidates: Iterator[DecodeCandidate]) -> Iterator[DecodeCandidate]:
        for each in candidates:
            self.num_seen += 1
            yield each

    def __iter__(self) -> Iterator[DecodeCandidate]:
        return self._counted(super().__iter__())

    def __reversed__(self) -> Iterator[DecodeCandidate]:
        return self._counted(super().__reversed__())

    def larger_than(self, num_blocks: int) -> Iterator[DecodeCandidate]:
        return self._counted(super().larger_than(num_blocks))


@pytest.mark.parametrize("pool", PoolState)
@pytest.mark.parametrize("num_spare", [0, 9])
def test_no_more_of_the_waiting_are_looked_at_than_join_or_go(pool: PoolState, num_spare: int) -> None:
    line = CountedCandidates()
    for number in range(2000):
        line.add(candidate(100 + number, held=1 if number else 200))
    running = [candidate(1, missing=3), candidate(2, missing=1)]
    plan = plan_step(running, line, stock(num_spare, pool), 6)
    assert plan.hopeless == (100,)
    assert line.num_seen < 20

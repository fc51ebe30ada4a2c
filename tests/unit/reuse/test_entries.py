"""Entries: built on second sight, used while they are copied, given up within quotas."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tandem.errors import StorageError
from tandem.reuse.entries import SegmentEntry, SegmentIndex, SegmentQuota, Sight

QUOTA = SegmentQuota(num_blocks=10, num_domain_blocks=6, num_sights=3)


def entry(name: str, num_blocks: int = 2, domain: bytes = b"a") -> SegmentEntry:
    return SegmentEntry(name.encode(), domain, (1, 2, 3), tuple(range(num_blocks)))


def build(index: SegmentIndex, made: SegmentEntry) -> None:
    assert index.see(made.key, is_declared=True) is Sight.BUILD
    assert index.make_room(made.domain, len(made.block_ids)) is not None
    index.add(made)


def test_an_entry_is_built_on_the_second_sight_by_one() -> None:
    index = SegmentIndex(QUOTA)
    sights = [index.see(b"k", is_declared=False) for _ in range(3)]
    assert sights == [Sight.FIRST, Sight.BUILD, Sight.BEING_BUILT]
    index.add(entry("k"))
    assert index.see(b"k", is_declared=False) is Sight.READY


def test_a_declared_segment_is_built_at_once() -> None:
    assert SegmentIndex(QUOTA).see(b"k", is_declared=True) is Sight.BUILD


def test_a_build_that_failed_is_tried_at_the_next_sight() -> None:
    index = SegmentIndex(QUOTA)
    index.see(b"k", is_declared=True)
    index.abandon(b"k")
    assert index.see(b"k", is_declared=False) is Sight.BUILD


def test_only_so_many_keys_are_remembered() -> None:
    index = SegmentIndex(QUOTA)
    for key in (b"1", b"2", b"3", b"4"):
        index.see(key, is_declared=False)
    assert index.see(b"2", is_declared=False) is Sight.BUILD
    assert index.see(b"1", is_declared=False) is Sight.FIRST


def test_the_tokens_are_compared() -> None:
    index = SegmentIndex(QUOTA)
    build(index, entry("k"))
    assert index.use(b"k", [1, 2, 4]) is None
    assert index.use(b"k", [1, 2, 3]) == entry("k")


def test_the_longest_unused_goes_first_and_what_is_used_stays() -> None:
    index = SegmentIndex(SegmentQuota(6, 6, 8))
    for name in "xyz":
        build(index, entry(name))
    index.use(b"x", (1, 2, 3))
    index.leave(b"x")
    index.use(b"y", (1, 2, 3))
    evicted = index.make_room(b"b", 4)
    assert evicted is not None
    assert [each.key for each in evicted] == [b"z", b"x"]
    assert index.make_room(b"b", 6) is None
    index.leave(b"y")
    assert index.make_room(b"b", 6) == (entry("y"),)


def test_a_domain_makes_room_among_its_own() -> None:
    index = SegmentIndex(QUOTA)
    build(index, entry("other", 2, b"b"))
    for name in "xyz":
        build(index, entry(name))
    assert index.make_room(b"a", 2) == (entry("x"),)
    assert index.statistics().num_blocks == 6


def test_what_is_larger_than_a_quota_evicts_nothing() -> None:
    index = SegmentIndex(QUOTA)
    build(index, entry("x"))
    assert index.make_room(b"a", 7) is None
    assert index.statistics().num_entries == 1


def test_a_domain_is_removed_but_for_what_is_used() -> None:
    index = SegmentIndex(QUOTA)
    for name, domain in (("x", b"a"), ("y", b"a"), ("z", b"b")):
        build(index, entry(name, 2, domain))
    index.use(b"y", (1, 2, 3))
    assert index.remove_domain(b"a") == (entry("x"),)
    assert index.statistics().num_entries == 2


def test_steps_out_of_order_are_refused() -> None:
    index = SegmentIndex(QUOTA)
    with pytest.raises(StorageError, match="not being built"):
        index.add(entry("k"))
    with pytest.raises(StorageError, match="not in use"):
        index.leave(b"k")
    index.see(b"k", is_declared=True)
    with pytest.raises(StorageError, match="quota"):
        index.add(entry("k", 11))


class Index(RuleBasedStateMachine):
    """Whatever happens: within both quotas, and nothing that is in use is given up."""

    def __init__(self) -> None:
        super().__init__()
        self.index = SegmentIndex(QUOTA)
        self.used: list[bytes] = []
        self.there: dict[bytes, SegmentEntry] = {}

    @rule(name=st.sampled_from("abcdefgh"), num_blocks=st.integers(1, 7), domain=st.sampled_from([b"a", b"b"]))
    def see(self, name: str, num_blocks: int, domain: bytes) -> None:
        made = entry(name, num_blocks, domain)
        if self.index.see(made.key, is_declared=False) is not Sight.BUILD:
            return
        evicted = self.index.make_room(domain, num_blocks)
        if evicted is None:
            self.index.abandon(made.key)
            return
        for each in evicted:
            assert each.key not in self.used
            del self.there[each.key]
        self.index.add(made)
        self.there[made.key] = made

    @rule(name=st.sampled_from("abcdefgh"))
    def use(self, name: str) -> None:
        found = self.index.use(name.encode(), (1, 2, 3))
        assert found == self.there.get(name.encode())
        if found:
            self.used.append(found.key)

    @rule()
    def leave(self) -> None:
        if self.used:
            self.index.leave(self.used.pop())

    @invariant()
    def within_quotas(self) -> None:
        sizes = dict.fromkeys((b"a", b"b"), 0)
        for each in self.there.values():
            sizes[each.domain] += len(each.block_ids)
        assert max(sizes.values()) <= QUOTA.num_domain_blocks
        assert sum(sizes.values()) == self.index.statistics().num_blocks <= QUOTA.num_blocks


TestIndex = Index.TestCase
TestIndex.settings = settings(max_examples=40, stateful_step_count=30)

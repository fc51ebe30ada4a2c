"""Segments' entries are built on the second sight, or at once where declared, and by one prompt at a time."""

import pytest

from tandem.reuse.entries import SegmentSights, Sight


@pytest.fixture
def sights() -> SegmentSights:
    return SegmentSights(num_remembered=3)


def test_an_entry_is_built_on_the_second_sight_by_one(sights: SegmentSights) -> None:
    seen = [sights.see(b"k", is_declared=False) for _ in range(3)]
    assert seen == [Sight.FIRST, Sight.BUILD, Sight.BEING_BUILT]


def test_a_declared_segment_is_built_at_once_and_by_one(sights: SegmentSights) -> None:
    seen = [sights.see(b"k", is_declared=True) for _ in range(2)]
    assert seen == [Sight.BUILD, Sight.BEING_BUILT]


def test_a_build_that_failed_is_tried_at_the_next_sight(sights: SegmentSights) -> None:
    sights.see(b"k", is_declared=True)
    sights.abandon(b"k")
    assert sights.see(b"k", is_declared=False) is Sight.BUILD


def test_what_was_built_and_has_gone_is_new_again(sights: SegmentSights) -> None:
    sights.see(b"k", is_declared=True)
    sights.built(b"k")
    assert [sights.see(b"k", is_declared=False) for _ in range(2)] == [Sight.FIRST, Sight.BUILD]


def test_only_the_newest_keys_are_remembered(sights: SegmentSights) -> None:
    for key in (b"1", b"2", b"3", b"4"):
        sights.see(key, is_declared=False)
    assert sights.see(b"2", is_declared=False) is Sight.BUILD
    assert sights.see(b"1", is_declared=False) is Sight.FIRST


def test_abandoned_keys_are_remembered_within_the_same_bound(sights: SegmentSights) -> None:
    for key in (b"1", b"2", b"3", b"4"):
        sights.see(key, is_declared=True)
        sights.abandon(key)
    assert sights.see(b"1", is_declared=False) is Sight.FIRST
    assert sights.see(b"4", is_declared=False) is Sight.BUILD

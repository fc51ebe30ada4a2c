"""What segment reuse is expected to leave of a prompt's work."""

import pytest

from tandem.kv.contents import block_keys
from tandem.routing.published import PublishedBlocks, PublishedPrefixes
from tandem.scheduler.dispatch import Claim, Dispatcher
from tandem.scheduler.fcfs import first_come_first_served
from tandem.scheduler.reused_spans import KnownEntries, ReusedSpan

BLOCK = 16


@pytest.mark.parametrize(
    ("span", "num_cached", "num_saved"),
    [
        (ReusedSpan(100, 300, 16, 0.15), 0, 200 - 30 - 16),
        (ReusedSpan(100, 300, 16, 0.15), 200, 100 - 15 - 16),
        (ReusedSpan(100, 300, 16, 0.15), 400, 0),
        (ReusedSpan(100, 300, 16, 0.0), 0, 184),
        (ReusedSpan(100, 300, 16, 1.0), 0, 0),
        (ReusedSpan(100, 110, 16, 0.15), 0, 0),
    ],
)
def test_a_span_saves_what_is_neither_cached_nor_computed(span, num_cached, num_saved):
    assert span.num_saved_tokens(num_cached) == num_saved


def test_the_queue_goes_by_the_work_that_reuse_leaves():
    spans = (ReusedSpan(32, 232, 16, 0.1), ReusedSpan(240, 340, 16, 0.1))
    claim = Claim(0, 0, 0, "", 400, (), BLOCK, reused=spans)
    assert claim.entry(0).work_tokens == 400 - (200 - 20 - 16) - (100 - 10 - 16)
    assert claim.entry(8).work_tokens == 400 - 128 - (104 - 11 - 16) - (100 - 10 - 16)


def test_what_may_turn_out_approximate_is_not_taken_for_published():
    view = PublishedPrefixes(lambda: 100, PublishedBlocks(lambda: 100))
    queue: Dispatcher[str] = Dispatcher(first_come_first_served(), view, 1000)
    keys = block_keys(b"ns", range(96), BLOCK)
    queue.push("reusing", Claim(0, 0, 0, "", 96, keys, BLOCK, num_certain_tokens=40))
    queue.push("same", Claim(0, 1, 0, "", 96, keys, BLOCK))
    for _ in range(2):
        queue.take(0)
    assert queue.sent_work_tokens("reusing") == 96
    assert queue.sent_work_tokens("same") == 96 - 32


def test_entries_are_known_while_they_were_found_of_late():
    known = KnownEntries(2)
    for key in (b"1", b"2", b"1", b"3"):
        known.note(key, found=True)
    assert [key in known for key in (b"1", b"2", b"3")] == [True, False, True]
    known.note(b"1", found=False)
    assert b"1" not in known
    known.clear()
    assert b"3" not in known

"""The waiting queue, against a sorted list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.scheduler.waiting import FirstComeFirstServed, WaitingEntry, WaitingQueue, num_dispatchable

ENTRIES = st.builds(WaitingEntry, st.integers(-2, 2), st.integers(0, 4), st.integers(0, 2))


def order(entry: WaitingEntry) -> tuple[int, int, int]:
    return (-entry.priority, entry.arrival_unix_ns, entry.index)


@given(st.lists(ENTRIES, max_size=30))
def test_pops_come_in_order_and_ties_in_order_of_pushes(entries):
    queue: WaitingQueue[int] = WaitingQueue(FirstComeFirstServed())
    for number, entry in enumerate(entries):
        queue.push(number, entry)
    popped = [queue.pop() for _ in entries]
    assert popped == sorted(range(len(entries)), key=lambda number: order(entries[number]))
    assert len(queue) == 0


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "discard"]), st.integers(0, 9), ENTRIES), max_size=80))
def test_any_mixture_of_operations_is_that_of_a_sorted_list(operations):
    queue: WaitingQueue[int] = WaitingQueue(FirstComeFirstServed())
    model: list[tuple[tuple[int, int, int], int, int]] = []
    for number, (name, item, entry) in enumerate(operations):
        waiting = {kept[2] for kept in model}
        if name == "push" and item not in waiting:
            queue.push(item, entry)
            model.append((order(entry), number, item))
        elif name == "discard":
            assert queue.discard(item) == (item in waiting)
            model = [kept for kept in model if kept[2] != item]
        elif name == "pop" and model:
            first = min(model)
            model.remove(first)
            assert queue.pop() == first[2]
        assert len(queue) == len(model)


def test_a_sequence_that_comes_back_has_its_old_place():
    queue: WaitingQueue[str] = WaitingQueue(FirstComeFirstServed())
    old, young = WaitingEntry(0, 1, 0), WaitingEntry(0, 2, 0)
    queue.push("old", old)
    queue.push("young", young)
    assert queue.pop() == "old"
    queue.push("old", old)
    assert queue.pop() == "old"


def test_nothing_waits_twice_and_nothing_comes_from_an_empty_queue():
    queue: WaitingQueue[str] = WaitingQueue(FirstComeFirstServed())
    with pytest.raises(IndexError):
        queue.pop()
    queue.push("a", WaitingEntry(0, 1, 0))
    with pytest.raises(ValueError, match="already"):
        queue.push("a", WaitingEntry(0, 2, 0))
    assert queue.discard("a") is True
    assert queue.discard("a") is False
    with pytest.raises(IndexError):
        queue.pop()


@pytest.mark.parametrize(
    ("num_waiting", "num_running", "max_running", "expected"),
    [(5, 0, 3, 3), (2, 0, 3, 2), (5, 3, 3, 0), (5, 4, 3, 0), (0, 0, 3, 0)],
)
def test_how_many_may_go(num_waiting, num_running, max_running, expected):
    assert num_dispatchable(num_waiting, num_running, max_running) == expected

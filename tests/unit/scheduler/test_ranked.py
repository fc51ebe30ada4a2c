"""The orders by rank, against a sorted list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.scheduler.fcfs import first_come_first_served
from tandem.scheduler.longest_prefix import longest_prefix_first
from tandem.scheduler.waiting import WaitingEntry

NOW = 0
ENTRIES = st.builds(
    WaitingEntry,
    st.integers(-2, 2),
    st.integers(0, 4),
    st.integers(0, 2),
    num_tokens=st.just(100),
    num_cached_tokens=st.sampled_from([0, 16, 32]),
)


def by_arrival(entry: WaitingEntry) -> tuple[int, ...]:
    return (-entry.priority, entry.arrival_unix_ns, entry.index)


def by_prefix(entry: WaitingEntry) -> tuple[int, ...]:
    return (-entry.priority, -entry.num_cached_tokens, entry.arrival_unix_ns, entry.index)


ORDERS = [(first_come_first_served, by_arrival), (longest_prefix_first, by_prefix)]


@pytest.mark.parametrize(("make", "order"), ORDERS)
@given(
    operations=st.lists(st.tuples(st.sampled_from(["push", "pop", "discard"]), st.integers(0, 9), ENTRIES), max_size=80)
)
def test_any_mixture_of_operations_is_that_of_a_sorted_list(make, order, operations):
    queue = make()
    model: list[tuple[tuple[int, ...], int, int]] = []
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
            assert queue.pop(NOW) == first[2]
        assert len(queue) == len(model)


def test_a_prefix_that_turns_up_changes_the_place():
    queue = longest_prefix_first()
    for item in range(3):
        queue.push(item, WaitingEntry(0, item, 0, num_tokens=100))
    queue.update(2, WaitingEntry(0, 2, 0, num_tokens=100, num_cached_tokens=64))
    assert [queue.pop(NOW) for _ in range(3)] == [2, 0, 1]

"""What every order of the gateway's queue promises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.scheduler.policies import POLICIES, PolicyOptions, make_policy
from tandem.scheduler.waiting import OrderingPolicy, WaitingEntry

NOW = 10**9
OPTIONS = PolicyOptions(max_wait_s=3600.0)
ENTRIES = st.builds(
    WaitingEntry,
    priority=st.integers(-2, 2),
    arrival_unix_ns=st.integers(0, 4),
    index=st.integers(0, 2),
    tenant=st.sampled_from(["", "a", "b"]),
    num_tokens=st.integers(1, 500),
    num_cached_tokens=st.integers(0, 400),
)


@pytest.fixture(params=POLICIES)
def queue(request) -> OrderingPolicy:
    return make_policy(request.param, OPTIONS)


@pytest.mark.parametrize("name", POLICIES)
@given(data=st.data())
def test_what_is_pushed_comes_out_once_by_priority(name, data):
    queue = make_policy(name, OPTIONS)
    waiting: dict[int, WaitingEntry] = {}
    for number in range(data.draw(st.integers(0, 30))):
        match data.draw(st.sampled_from(["push", "push", "pop", "discard", "update", "charge"])):
            case "push":
                waiting[number] = data.draw(ENTRIES)
                queue.push(number, waiting[number])
            case "pop" if waiting:
                gone = waiting.pop(queue.pop(NOW))
                assert gone.priority == max(entry.priority for entry in (gone, *waiting.values()))
            case "discard":
                item = data.draw(st.integers(0, 30))
                assert queue.discard(item) == (waiting.pop(item, None) is not None)
            case "update" if waiting:
                item = data.draw(st.sampled_from(sorted(waiting)))
                waiting[item] = recached(waiting[item], data.draw(st.integers(0, 400)))
                queue.update(item, waiting[item])
            case "charge":
                queue.charge(data.draw(st.sampled_from(["", "a", "c"])), data.draw(st.floats(-100, 1000)))
        assert len(queue) == len(waiting)
    assert {queue.pop(NOW) for _ in range(len(queue))} == set(waiting)


def recached(entry: WaitingEntry, num_cached_tokens: int) -> WaitingEntry:
    return WaitingEntry(
        entry.priority, entry.arrival_unix_ns, entry.index, entry.tenant, entry.num_tokens, num_cached_tokens
    )


def test_equals_come_in_order_of_pushes(queue):
    for item in range(5):
        queue.push(item, WaitingEntry(0, 1, 0))
    queue.update(3, WaitingEntry(0, 1, 0))
    assert [queue.pop(NOW) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_a_sequence_that_comes_back_has_its_old_place(queue):
    old, young = WaitingEntry(0, 1, 0), WaitingEntry(0, 2, 0)
    queue.push("old", old)
    queue.push("young", young)
    assert queue.pop(NOW) == "old"
    queue.push("old", old)
    assert queue.pop(NOW) == "old"


def test_nothing_waits_twice_and_nothing_comes_from_an_empty_queue(queue):
    with pytest.raises(IndexError):
        queue.pop(NOW)
    queue.push("a", WaitingEntry(0, 1, 0))
    with pytest.raises(ValueError, match="already"):
        queue.push("a", WaitingEntry(0, 2, 0))
    assert queue.discard("a") is True
    assert queue.discard("a") is False
    with pytest.raises(IndexError):
        queue.pop(NOW)

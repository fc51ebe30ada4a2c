"""What every router promises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.routing.router import Prospect
from tandem.routing.routers import ROUTERS, make_router

SECONDS = st.floats(0, 100)
PROSPECTS = st.lists(
    st.builds(
        Prospect,
        replica_id=st.uuids().map(str),
        num_exact_tokens=st.integers(0, 1000),
        num_segment_tokens=st.integers(0, 1000),
        num_computed_tokens=st.integers(1, 1000),
        wait_s=SECONDS,
        compute_s=SECONDS,
        utilisation=st.floats(0, 5),
        load_s=SECONDS,
        last_turn=st.integers(0, 1000),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", ROUTERS)
@given(choices=st.lists(PROSPECTS, max_size=20), seed=st.integers(0, 5))
def test_it_chooses_one_of_them_and_again_the_same(name, choices, seed):
    first, second = make_router(name, seed), make_router(name, seed)
    for prospects in choices:
        chosen = first.choose(prospects)
        assert chosen in prospects
        assert second.choose(prospects) == chosen


@pytest.mark.parametrize("name", ROUTERS)
def test_equals_take_turns(name):
    router, turns = make_router(name, 3), dict.fromkeys("abcd", 0)
    counts = dict.fromkeys("abcd", 0)
    for turn in range(1, 401):
        chosen = router.choose([Prospect(each, 0, 0, 1, 0.0, 0.1, 0.0, 0.0, last) for each, last in turns.items()])
        turns[chosen.replica_id] = turn
        counts[chosen.replica_id] += 1
    assert max(counts.values()) - min(counts.values()) <= 4

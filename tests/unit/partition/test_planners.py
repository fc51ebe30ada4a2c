import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import ConfigError
from tandem.partition.observations import LatencyStatistics, Observations, RequestStatistics
from tandem.partition.registry import PLANNERS, make_planner
from tandem.types import Split

splits = st.builds(Split, st.integers(1, 100), st.integers(1, 100))
overloaded = Observations(RequestStatistics(100, 50, LatencyStatistics(50, 9e3, 9e4), LatencyStatistics()))


@pytest.mark.parametrize("name", list(PLANNERS))
def test_planners_are_pure_and_say_why(name):
    planner = make_planner(name, Split(40, 60))
    assert planner.name == name
    first = planner.plan(overloaded, Split(40, 60))
    assert first == planner.plan(overloaded, Split(40, 60))
    assert first.reason
    assert 1 <= first.split.prefill_percent <= 100
    assert 1 <= first.split.decode_percent <= 100


@given(splits, splits)
def test_the_static_planner_never_moves(configured, current):
    assert make_planner("static", configured).plan(overloaded, current).split == configured


def test_an_unknown_planner_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"controller\.planner: no planner 'stattic'"):
        make_planner("stattic", Split(50, 50))

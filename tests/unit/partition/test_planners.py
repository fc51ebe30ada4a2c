import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import ConfigError
from tandem.partition.observations import LatencyStatistics, Observations, RequestStatistics
from tandem.partition.registry import PLANNERS, PlannerOptions, make_planner
from tandem.partition.slo import Slo, SloPolicy
from tandem.types import Split

SLOS = SloPolicy(Slo(500.0, 50.0))
splits = st.builds(Split, st.integers(1, 100), st.integers(1, 100))
overloaded = Observations(RequestStatistics(100, 50, LatencyStatistics(50, 9e3, 9e4), LatencyStatistics()))


@pytest.mark.parametrize("name", list(PLANNERS))
def test_planners_are_pure_and_say_why(name):
    planner = make_planner(name, PlannerOptions(Split(40, 60), SLOS, 0.1))
    assert planner.name == name
    first = planner.plan(overloaded, Split(40, 60))
    assert first == planner.plan(overloaded, Split(40, 60))
    assert first.reason
    assert 1 <= first.split.prefill_percent <= 100
    assert 1 <= first.split.decode_percent <= 100


@given(splits, splits)
def test_the_static_planner_never_moves(configured, current):
    assert make_planner("static", PlannerOptions(configured, SLOS, 0.1)).plan(overloaded, current).split == configured


def test_an_unknown_planner_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"controller\.planner: no planner 'stattic'"):
        make_planner("stattic", PlannerOptions(Split(50, 50), SLOS, 0.1))

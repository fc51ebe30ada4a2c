import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.device.cpu.cores import core_splits, plan_cores
from tandem.errors import DeviceError
from tandem.types import Phase, Split

percents = st.integers(1, 100)
core_sets = st.sets(st.integers(0, 255), min_size=1, max_size=64).map(sorted)


def both(split: Split, cores) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return plan_cores(split, Phase.PREFILL, cores).cores, plan_cores(split, Phase.DECODE, cores).cores


@pytest.mark.parametrize(
    ("split", "cores", "prefill", "decode"),
    [
        (Split(50, 50), [0, 1], (0,), (1,)),
        (Split(10, 90), [0, 1], (0,), (1,)),
        (Split(90, 10), [0, 1], (0,), (1,)),
        (Split(100, 100), [0, 1], (0, 1), (0, 1)),
        (Split(50, 50), [3], (3,), (3,)),
        (Split(50, 50), [0, 1, 2], (0, 1), (2,)),
        (Split(25, 75), [0, 1, 2, 3], (0,), (1, 2, 3)),
        (Split(75, 75), [0, 1, 2, 3], (0, 1, 2), (1, 2, 3)),
        (Split(1, 1), [4, 5, 6, 7], (4,), (7,)),
        (Split(25, 25), [0, 1, 2, 3, 4, 5, 6, 7], (0, 1), (6, 7)),
        (Split(1, 99), [0, 1, 2, 3, 4, 5, 6, 7], (0,), (1, 2, 3, 4, 5, 6, 7)),
        (Split(50, 50), [9, 2, 2, 5, 7], (2, 5), (7, 9)),
    ],
)
def test_cores_of_a_split(split, cores, prefill, decode):
    assert both(split, cores) == (prefill, decode)


@pytest.mark.parametrize("num_cores", range(1, 65))
def test_offered_splits_share_out_all_the_cores_each_in_its_own_way(num_cores):
    splits = core_splits(num_cores)
    assert len(splits) >= min(num_cores - 1, 5)
    assert len(splits) <= 15
    pairs = [both(split, range(num_cores)) for split in splits]
    assert len(set(pairs)) == len(splits)
    for prefill, decode in pairs:
        assert sorted((*prefill, *decode)) == list(range(num_cores))


def test_no_core_at_all():
    with pytest.raises(DeviceError):
        plan_cores(Split(50, 50), Phase.DECODE, [])


@given(percents, percents, core_sets)
def test_every_phase_has_cores_that_it_may_use_and_a_thread_on_each(x, y, cores):
    for phase in Phase:
        share = plan_cores(Split(x, y), phase, cores)
        assert share.cores
        assert set(share.cores) <= set(cores)
        assert share.num_threads == len(share.cores)


@given(percents, percents, core_sets.filter(lambda cores: len(cores) >= 2))
def test_shares_that_fit_side_by_side_are_disjoint(x, y, cores):
    prefill, decode = both(Split(x, y), cores)
    if x + y <= 100:
        assert not set(prefill) & set(decode)


@given(percents, percents, percents, core_sets)
def test_a_larger_share_never_has_fewer_cores(small, large, other, cores):
    small, large = sorted((small, large))
    assert len(both(Split(small, other), cores)[0]) <= len(both(Split(large, other), cores)[0])
    assert len(both(Split(other, small), cores)[1]) <= len(both(Split(other, large), cores)[1])

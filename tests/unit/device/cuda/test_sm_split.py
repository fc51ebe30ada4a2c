import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.device.cuda.sm_split import SmGroups, describe, grain_of, levels, plan_share, shares_of, whole
from tandem.errors import DeviceError
from tandem.types import Phase, Split

H200 = SmGroups(num_sms=132, group_sms=8, num_groups=16)

percents = st.integers(1, 100)
devices = st.builds(
    lambda num_groups, group_sms, rest: SmGroups(num_groups * group_sms + rest, group_sms, num_groups),
    st.integers(1, 80), st.integers(1, 8), st.integers(0, 7),
)  # fmt: skip


def shares(split: Split, device: SmGroups = H200):
    return plan_share(Phase.PREFILL, split, device), plan_share(Phase.DECODE, split, device)


@pytest.mark.parametrize(
    ("capability", "group_sms"), [((7, 5), 2), ((8, 0), 4), ((8, 9), 4), ((9, 0), 8), ((10, 0), 8), ((12, 1), 8)]
)
def test_the_smallest_group_of_a_device(capability, group_sms):
    assert grain_of(capability).group_sms == group_sms


@pytest.mark.parametrize(
    ("split", "prefill_sms", "decode_sms"),
    [
        (Split(50, 50), 64, 64),
        (Split(30, 70), 40, 88),
        (Split(1, 99), 16, 112),
        (Split(99, 1), 112, 16),
        (Split(30, 30), 40, 40),
        (Split(100, 50), 132, 64),
        (Split(100, 100), 132, 132),
        (Split(60, 60), 88, 88),
    ],
)
def test_what_is_really_had_of_an_h200(split, prefill_sms, decode_sms):
    prefill, decode = shares(split)
    assert (prefill.num_sms, decode.num_sms) == (prefill_sms, decode_sms)


def test_prefill_has_the_first_groups_and_decode_the_last():
    prefill, decode = shares(Split(30, 70))
    assert (prefill.groups, decode.groups) == (range(5), range(5, 16))


def test_above_a_hundred_percent_they_overlap_in_the_middle():
    prefill, decode = shares(Split(60, 60))
    assert set(prefill.groups) & set(decode.groups) == set(range(5, 11))


@given(percents, percents, devices)
def test_shares_that_fit_beside_each_other_are_disjoint_and_neither_is_empty(x, y, device):
    prefill, decode = shares(Split(x, y), device)
    assert prefill.groups and decode.groups
    if x + y <= 100 and device.num_groups > 1:
        assert not set(prefill.groups) & set(decode.groups)
        assert prefill.num_sms + decode.num_sms <= device.num_sms


@given(percents, percents, devices)
def test_every_answer_was_made_ahead_of_need(x, y, device):
    for phase in Phase:
        assert plan_share(phase, Split(x, y), device) in shares_of(phase, device)


@given(percents, percents, devices)
def test_a_larger_prefill_share_is_never_fewer_sms(x, y, device):
    smaller, larger = sorted((x, y))
    few, many = (plan_share(Phase.PREFILL, Split(percent, 1), device) for percent in (smaller, larger))
    assert few.num_sms <= many.num_sms


@given(st.integers(2, 500))
def test_a_level_leaves_a_level_to_the_peer(num_groups):
    found = levels(num_groups)
    assert {num_groups - level for level in found} == set(found)
    assert min(found) >= 1 and len(found) <= 6


def test_an_h200_has_five_levels_beside_the_whole_device():
    assert levels(16) == (2, 5, 8, 11, 14)
    assert len(set(shares_of(Phase.DECODE, H200))) == 6


def test_one_group_cannot_be_shared_out():
    device = SmGroups(num_sms=14, group_sms=8, num_groups=1)
    assert shares(Split(50, 50), device) == (whole(device), whole(device))


def test_no_group_at_all():
    with pytest.raises(DeviceError, match="8 of the device's 6 SMs"):
        plan_share(Phase.PREFILL, Split(50, 50), SmGroups(num_sms=6, group_sms=8, num_groups=0))


def test_a_description_says_what_is_really_had():
    assert describe(plan_share(Phase.DECODE, Split(30, 70), H200), H200) == "SMs 88 of 132 (66.7 %), groups 5-15 of 16"
    assert describe(whole(H200), H200) == "SMs 132 of 132 (100.0 %), no partition"

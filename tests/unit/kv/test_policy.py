import pytest

from tandem.kv.policy import LeaseFate, grant_size, lease_fate, reclaim_shares


@pytest.mark.parametrize(
    ("service", "num_asked", "num_free", "granted"),
    [
        ("prefill", 10, 30, 10),
        ("prefill", 20, 30, 14),
        ("prefill", 10, 16, 0),
        ("prefill", 10, 3, 0),
        ("decode", 20, 30, 20),
        ("decode", 40, 30, 30),
        ("decode", 4, 0, 0),
    ],
)
def test_only_decode_takes_the_last_blocks(service, num_asked, num_free, granted):
    assert grant_size(service, num_asked, num_free, num_reserve_blocks=16) == granted


@pytest.mark.parametrize(
    ("holder_id", "now_s", "fate"),
    [
        (0, 40.0, LeaseFate.GOES_ON),
        (0, 40.5, LeaseFate.ENDED),
        (3, 40.0, LeaseFate.GOES_ON),
        (3, 400.0, LeaseFate.REVOKED),
    ],
)
def test_an_attached_phase_loses_a_lease_before_the_lease_ends(holder_id, now_s, fate):
    assert lease_fate(holder_id, renewed_at_s=10.0, now_s=now_s, ttl_s=30.0) is fate


def test_those_with_most_are_asked_first():
    assert reclaim_shares(10, {1: 4, 2: 8, 3: 0}) == {2: 8, 1: 2}
    assert reclaim_shares(100, {1: 4, 2: 8}) == {2: 8, 1: 4}
    assert reclaim_shares(0, {1: 4}) == {}

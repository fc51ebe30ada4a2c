"""Replicas that join, leave and are gone."""

import pytest

from tandem.routing.membership import TRANSITIONS, Membership, ReplicaState

JOINED, LEAVING, GONE = ReplicaState.JOINED, ReplicaState.LEAVING, ReplicaState.GONE
PATHS = {JOINED: [JOINED], LEAVING: [JOINED, LEAVING], GONE: []}


def at(state: ReplicaState) -> Membership:
    membership = Membership()
    for each in PATHS[state]:
        membership = membership.moved("a", each)
    return membership


@pytest.mark.parametrize("before", ReplicaState)
@pytest.mark.parametrize("after", ReplicaState)
def test_the_table_is_what_can_happen(before, after):
    membership = at(before)
    if after in TRANSITIONS[before]:
        assert membership.moved("a", after).state("a") is after
    else:
        with pytest.raises(ValueError, match=f"{before} does not lead to {after}"):
            membership.moved("a", after)
    assert membership.state("a") is before, "it is a value"


def test_who_leaves_cannot_be_taken_back_before_it_is_gone():
    assert TRANSITIONS[LEAVING] == {GONE}


def test_only_the_joined_serve_and_the_gone_are_forgotten():
    membership = Membership().moved("a", JOINED).moved("b", JOINED).moved("c", JOINED)
    assert membership.serving == ("a", "b", "c")
    membership = membership.moved("b", LEAVING)
    assert membership.serving == ("a", "c")
    membership = membership.moved("b", GONE).moved("a", GONE).moved("a", JOINED)
    assert membership.serving == ("c", "a")
    assert set(membership.states) == {"a", "c"}

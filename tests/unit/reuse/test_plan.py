"""What is computed of a prompt, by hand and under hypothesis."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.reuse.plan import Placement, ReusePolicy, ReuseUsage, choose, place, plan_reuse, usage
from tandem.reuse.refresh import RefreshPolicy, RefreshState, refresh

POLICY = ReusePolicy(ratio=0.25, head_tokens=2, min_reused_tokens=1, max_computed_share=1.0)


def test_by_hand() -> None:
    plan = plan_reuse(20, 3, [Placement(b"a", 4, 0, 6), Placement(b"b", 12, 0, 5)], POLICY)
    assert plan is not None
    assert plan.fresh == (3, 10, 11, 17, 18, 19)
    assert plan.heads == (4, 5, 12, 13)
    assert plan.reused == (6, 7, 8, 9, 14, 15, 16)
    assert plan.num_chosen == 3  # a quarter of 11
    assert list(plan.suffix) == [17, 18, 19]
    scores = np.zeros(20, dtype=np.float32)
    scores[[3, 5, 8, 15]] = (9, 9, 1, 2)  # two of them are computed in any case
    chosen = choose(plan, scores)
    assert chosen == (3, 4, 5, 6, 8, 10, 11, 12, 13, 15, 17, 18, 19)
    assert usage(plan, chosen) == ReuseUsage(num_exact=3, num_approximate=4, num_computed=13)


def test_a_segment_that_the_exact_prefix_covers_is_cut() -> None:
    assert place(b"k", 10, 30, 5) == Placement(b"k", 10, 0, 30)
    assert place(b"k", 10, 30, 16) == Placement(b"k", 16, 6, 24)
    assert place(b"k", 10, 30, 40) is None


def test_the_first_and_the_last_token_are_computed() -> None:
    plan = plan_reuse(10, 0, [Placement(b"k", 0, 0, 10)], replace(POLICY, head_tokens=0, ratio=0.0))
    assert plan is not None
    assert plan.fresh == (0, 9)
    assert list(plan.suffix) == [9]


def test_everything_at_ratio_one() -> None:
    plan = plan_reuse(50, 0, [Placement(b"k", 5, 0, 40)], replace(POLICY, ratio=1.0))
    assert plan is not None
    assert choose(plan, np.zeros(50, dtype=np.float32)) == tuple(range(50))


@pytest.mark.parametrize(
    ("policy", "is_reused"),
    [
        (replace(POLICY, min_reused_tokens=41), False),
        (replace(POLICY, min_reused_tokens=40), True),
        (replace(POLICY, max_computed_share=0.43), False),  # 10 fresh, 2 heads, 10 chosen of 50
        (replace(POLICY, max_computed_share=0.44), True),
    ],
)
def test_reuse_that_does_not_pay_is_left(policy: ReusePolicy, is_reused: bool) -> None:
    assert (plan_reuse(50, 0, [Placement(b"k", 5, 0, 40)], policy) is not None) is is_reused


@given(st.data())
def test_every_position_has_one_fate(data: st.DataObject) -> None:
    num_exact, placements, at = data.draw(st.integers(0, 9)), [], data.draw(st.integers(0, 5))
    at += num_exact
    for key in range(data.draw(st.integers(0, 4))):
        placements.append(Placement(bytes([key]), at, 0, data.draw(st.integers(1, 12))))
        at = placements[-1].positions[-1] + 1 + data.draw(st.integers(0, 4))
    num_tokens = at + data.draw(st.integers(1, 5))
    policy = replace(
        POLICY,
        min_reused_tokens=0,
        ratio=data.draw(st.floats(0, 1)),
        head_tokens=data.draw(st.integers(0, 4)),
    )
    plan = plan_reuse(num_tokens, num_exact, placements, policy)
    assert plan is not None
    assert sorted((*range(num_exact), *plan.fresh, *plan.heads, *plan.reused)) == list(range(num_tokens))
    scores = np.random.default_rng(0).random(num_tokens, dtype=np.float32)
    computed = choose(plan, scores)
    assert len(computed) == len(set(computed)) == len(plan.fresh) + len(plan.heads) + plan.num_chosen
    assert {*plan.fresh, *plan.heads} <= set(computed) <= set(range(num_exact, num_tokens))
    left = set(plan.reused) - set(computed)
    taken = set(plan.reused) & set(computed)
    assert not left or not taken or min(scores[list(taken)]) >= max(scores[list(left)])
    spent = usage(plan, computed)
    assert spent.num_exact + spent.num_approximate + spent.num_computed == num_tokens


def test_a_refresh_takes_the_highest_and_comes_again_after_as_many_tokens() -> None:
    policy, scores = RefreshPolicy(every_tokens=4, num_tokens=2), np.arange(10, dtype=np.float32)
    first = refresh(RefreshState((2, 3, 7)), scores, 4, policy)
    assert (first.positions, first.state) == ((3, 7), RefreshState((2,), 4))
    assert not first.state.is_due(7, policy)
    assert first.state.is_due(8, policy)
    second = refresh(first.state, scores, 8, policy)
    assert second.positions == (2,)
    assert not second.state.is_due(99, policy)

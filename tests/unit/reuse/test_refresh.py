"""Which approximate tokens are computed anew while an answer grows."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tandem.reuse.refresh import RefreshPolicy, RefreshState, refresh, spans_of
from tandem.types import Span

positions = st.sets(st.integers(0, 60)).map(sorted)


@given(positions)
def test_positions_come_back_from_their_spans(stale: list[int]) -> None:
    spans = spans_of(stale)
    assert list(RefreshState.of(spans, done_at=5).stale) == stale
    assert all(first.end < second.start for first, second in pairwise(spans)), "as few as there are"


def test_spans_by_hand() -> None:
    assert spans_of([3, 4, 5, 9, 11, 12]) == (Span(3, 6), Span(9, 10), Span(11, 13))


@given(positions, st.lists(st.floats(0, 1, width=32), min_size=61, max_size=61), st.integers(1, 20))
def test_nothing_that_stays_is_looked_at_more_than_what_is_computed(
    stale: list[int], looked_at: list[float], num_tokens: int
) -> None:
    scores = np.asarray(looked_at, dtype=np.float32)
    done = refresh(RefreshState(tuple(stale)), scores, 40, RefreshPolicy(8, num_tokens))
    assert sorted((*done.positions, *done.state.stale)) == stale
    assert len(done.positions) == min(num_tokens, len(stale))
    assert list(done.positions) == sorted(done.positions)
    lowest = min((scores[position] for position in done.positions), default=2)
    assert all(scores[position] <= lowest for position in done.state.stale)
    assert done.state.done_at == 40

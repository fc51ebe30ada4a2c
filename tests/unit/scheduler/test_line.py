"""The line, against a sorted list."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.scheduler.line import Line
from tandem.scheduler.rank import rank_key


@dataclass(frozen=True)
class Standing:
    lease_id: int
    priority: int
    arrival_unix_ns: int


ENTRIES = st.builds(Standing, st.integers(0, 9), st.integers(-1, 1), st.integers(0, 3))


@given(st.lists(st.tuples(st.booleans(), ENTRIES), max_size=80))
def test_any_mixture_of_comings_and_goings_is_that_of_a_sorted_list(operations: list[tuple[bool, Standing]]) -> None:
    line: Line[Standing] = Line(rank_key)
    model: dict[int, Standing] = {}
    for comes, item in operations:
        if not comes:
            line.discard(item.lease_id)
            model.pop(item.lease_id, None)
        elif item.lease_id not in model:
            line.add(item)
            model[item.lease_id] = item
        expected = sorted(model.values(), key=rank_key)
        assert list(line) == expected
        assert list(reversed(line)) == expected[::-1]
        assert len(line) == len(expected)


def test_a_lease_stands_in_line_once() -> None:
    line: Line[Standing] = Line(rank_key)
    line.add(Standing(1, 0, 0))
    with pytest.raises(ValueError, match="lease 1"):
        line.add(Standing(1, 5, 5))
    assert list(line) == [Standing(1, 0, 0)]

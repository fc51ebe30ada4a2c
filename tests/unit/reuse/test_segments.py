"""Where segments begin and end, and whom their keys keep apart."""

import pytest

from tandem.errors import InvalidRequestError
from tandem.kv.contents import block_keys
from tandem.reuse.segments import SegmentOrigin, SegmentRules, Span, find_segments, segment_key

RULES = SegmentRules(min_tokens=4)
SEPARATED = SegmentRules(separators=((9, 9), (8,)), min_tokens=2)
PROMPT = [*range(100, 140)]


def places(segments) -> list[tuple[int, int]]:
    return [(segment.start, segment.start + len(segment.token_ids)) for segment in segments]


def test_declared_spans_come_first_and_short_ones_are_left_out() -> None:
    found = find_segments(PROMPT, b"ns", RULES, [Span(2, 10), Span(10, 12), Span(20, 40)])
    assert places(found) == [(2, 10), (20, 40)]
    assert {segment.origin for segment in found} == {SegmentOrigin.DECLARED}
    assert found[1].token_ids == tuple(PROMPT[20:])


def test_a_separator_belongs_to_what_it_ends() -> None:
    found = find_segments([1, 2, 9, 9, 3, 4, 5, 8, 6, 7, 9], b"ns", SEPARATED)
    assert places(found) == [(0, 4), (4, 8), (8, 11)]
    assert {segment.origin for segment in found} == {SegmentOrigin.SEPARATED}


def test_a_long_part_between_separators_is_cut_by_content() -> None:
    found = find_segments([*range(10, 3000), 8, 1, 2], b"ns", SEPARATED)
    assert places(found)[0][0] == 0
    assert places(found)[-1] == (2991, 2993)
    assert all(len(segment.token_ids) <= 1024 for segment in found)
    assert sum(len(segment.token_ids) for segment in found) == 2993


def test_without_separators_chunks_are_cut_by_content() -> None:
    found = find_segments(range(10, 5000), b"ns", SEPARATED)
    assert {segment.origin for segment in found} == {SegmentOrigin.CHUNKED}
    assert len(found) > 5


def test_an_empty_namespace_shares_nothing() -> None:
    assert find_segments(PROMPT, b"", RULES, [Span(0, 40)]) == ()


def test_keys_do_not_depend_on_the_position() -> None:
    text = list(range(50, 80))
    (first,) = find_segments([1, 2, 3, *text], b"ns", RULES, [Span(3, 33)])
    (second,) = find_segments([*range(20), *text, 7], b"ns", RULES, [Span(20, 50)])
    assert first.key == second.key


def test_keys_of_other_tenants_tokens_and_blocks_are_others() -> None:
    text = list(range(16))
    keys = [
        segment_key(b"tenant a", text),
        segment_key(b"tenant b", text),
        segment_key(b"tenant a", text[:-1]),
        segment_key(b"tenant a", [*text[:-1], 99]),
        *block_keys(b"tenant a", text, 16),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("spans", [[Span(3, 3)], [Span(0, 41)], [Span(0, 5), Span(4, 9)], [Span(-1, 4)]])
def test_a_bad_span_is_named(spans: list[Span]) -> None:
    with pytest.raises(InvalidRequestError, match=rf"segments\[{len(spans) - 1}\]") as raised:
        find_segments(PROMPT, b"ns", RULES, spans)
    assert "in order" in str(raised.value)

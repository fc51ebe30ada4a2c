"""`prepare_batch` against a token-by-token reading of its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.model.batch import SequenceRows, prepare_batch


@st.composite
def sequence_rows(draw: st.DrawFn, block_size: int) -> SequenceRows:
    start = draw(st.integers(0, 40))
    token_ids = draw(st.lists(st.integers(0, 50_000), min_size=1, max_size=20))
    num_blocks = -(-(start + len(token_ids)) // block_size) + draw(st.integers(0, 3))
    return SequenceRows(token_ids, start, draw(st.lists(st.integers(0, 999), min_size=num_blocks, max_size=num_blocks)))


@given(st.data(), st.sampled_from([1, 3, 16]))
@settings(max_examples=60)
def test_every_row_is_where_its_definition_says(data: st.DataObject, block_size: int) -> None:
    rows = data.draw(st.lists(sequence_rows(block_size), min_size=1, max_size=6))
    batch = prepare_batch(rows, block_size)
    expected = [
        (token_id, position, sequence.block_ids[position // block_size] * block_size + position % block_size)
        for sequence in rows
        for position, token_id in enumerate(sequence.token_ids, start=sequence.start)
    ]
    columns = (batch.token_ids.tolist(), batch.positions.tolist(), batch.slot_mapping.tolist())
    assert list(zip(*columns, strict=True)) == expected


@given(st.data())
@settings(max_examples=30)
def test_sequences_are_delimited(data: st.DataObject) -> None:
    rows = data.draw(st.lists(sequence_rows(4), min_size=1, max_size=6))
    batch = prepare_batch(rows, 4)
    lengths = [len(sequence.token_ids) for sequence in rows]
    contexts = [sequence.start + len(sequence.token_ids) for sequence in rows]
    assert batch.query_start.diff().tolist() == lengths
    assert batch.context_lens.tolist() == contexts
    assert [batch.token_ids[row].item() for row in batch.last_rows] == [s.token_ids[-1] for s in rows]
    assert (batch.max_query_len, batch.max_context_len) == (max(lengths), max(contexts))
    for table, sequence, context in zip(batch.block_tables.tolist(), rows, contexts, strict=True):
        needed = -(-context // 4)
        assert table == [*sequence.block_ids[:needed], *[0] * (len(table) - needed)]


def test_chosen_rows_are_where_they_say() -> None:
    chosen = SequenceRows([7, 8, 9], 2, [5, 3, 4], [2, 5, 9])
    batch = prepare_batch([SequenceRows([1, 2], 0, [6]), chosen], 4)
    assert batch.positions.tolist() == [0, 1, 2, 5, 9]
    assert batch.slot_mapping.tolist() == [24, 25, 22, 13, 17]
    assert batch.context_lens.tolist() == [2, 10]
    assert batch.block_tables.tolist() == [[6, 0, 0], [5, 3, 4]]
    assert batch.has_chosen_rows
    assert not prepare_batch([SequenceRows([1, 2], 0, [6])], 4).has_chosen_rows


def test_all_tensors_are_int64() -> None:
    batch = prepare_batch([SequenceRows((5, 6), 0, (3,)), SequenceRows([7], 16, [1, 2])], 16)
    tensors = [value for name in batch.__slots__ if isinstance(value := getattr(batch, name), torch.Tensor)]
    assert len(tensors) == 7
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


@pytest.mark.parametrize(
    "rows",
    [[], [SequenceRows([], 0, [0])], [SequenceRows([1, 2], 15, [0])]],
    ids=["no sequences", "no rows", "too few blocks"],
)
def test_what_cannot_be_laid_out_is_refused(rows: list[SequenceRows]) -> None:
    with pytest.raises(ValueError, match="sequence"):
        prepare_batch(rows, 16)

"""Chosen rows of a sequence: what selective prefill, probes and the decode stage's refresh bring to a step.

A row stores its fresh keys and values over what was reused, then sees every key up to its own position: in each layer
all rows of a step are stored before any of them attends.
"""

from collections.abc import Sequence

from tandem.model.batch import SequenceRows


def chosen_rows(token_ids: Sequence[int], positions: Sequence[int], block_ids: Sequence[int]) -> SequenceRows:
    """`token_ids` are the whole sequence's; `positions`, at least one, rise. KV between them is in place."""
    return SequenceRows([token_ids[position] for position in positions], positions[0], block_ids, positions)


def last_rows(token_ids: Sequence[int], num_rows: int, block_ids: Sequence[int]) -> SequenceRows:
    """The sequence's last `num_rows`, at least one: those that a look asks."""
    start = len(token_ids) - num_rows
    return SequenceRows(token_ids[start:], start, block_ids)

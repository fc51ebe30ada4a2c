"""A step's rows as tensors. Prefill chunks and decode rows are the same thing: queries at arbitrary positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """One sequence's part of a step: `token_ids` at positions ``start .. start + len(token_ids)``.

    `block_ids` cover every position up to the last row's. KV of positions before `start` is in place.
    """

    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The input of one forward pass."""

    token_ids: torch.Tensor  # [num_tokens] int64
    positions: torch.Tensor  # [num_tokens] int64
    slot_mapping: torch.Tensor  # [num_tokens] int64: block_id * block_size + offset
    query_start: torch.Tensor  # [num_seqs + 1] int64: rows query_start[i]:query_start[i+1] are sequence i's
    context_lens: torch.Tensor  # [num_seqs] int64: keys of sequence i after this step's are stored
    block_tables: torch.Tensor  # [num_seqs, max_blocks] int64, padded with 0
    last_rows: torch.Tensor  # [num_seqs] int64: each sequence's last row
    max_query_len: int
    max_context_len: int


def prepare_batch(rows: Sequence[SequenceRows], block_size: int) -> ForwardBatch:
    """Lays the sequences' rows out one after another; every one brings at least one row.

    ValueError: no sequences, one without rows, or one whose blocks do not cover its last position.
    """
    query_lens = np.array([len(sequence.token_ids) for sequence in rows], dtype=np.int64)
    starts = np.array([sequence.start for sequence in rows], dtype=np.int64)
    context_lens = starts + query_lens
    block_tables = _block_tables(rows, context_lens, block_size)
    query_start = np.concatenate(([0], np.cumsum(query_lens)))
    sequence_of_row = np.repeat(np.arange(len(rows)), query_lens)
    positions = np.arange(query_start[-1]) + (starts - query_start[:-1])[sequence_of_row]
    blocks = block_tables[sequence_of_row, positions // block_size]
    token_ids = np.fromiter(chain.from_iterable(sequence.token_ids for sequence in rows), np.int64)
    return ForwardBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.from_numpy(blocks * block_size + positions % block_size),
        query_start=torch.from_numpy(query_start),
        context_lens=torch.from_numpy(context_lens),
        block_tables=torch.from_numpy(block_tables),
        last_rows=torch.from_numpy(query_start[1:] - 1),
        max_query_len=int(query_lens.max()),
        max_context_len=int(context_lens.max()),
    )


def _block_tables(rows: Sequence[SequenceRows], context_lens: NDArray[np.int64], block_size: int) -> NDArray[np.int64]:
    """Checked and padded with 0: a row must never be stored into a block that is not its sequence's."""
    if not rows or any(not sequence.token_ids for sequence in rows):
        raise ValueError("a batch needs sequences, and each of them rows")
    num_needed = -(-context_lens // block_size)
    tables = np.zeros((len(rows), int(num_needed.max())), dtype=np.int64)
    for index, (sequence, needed) in enumerate(zip(rows, num_needed.tolist(), strict=True)):
        if len(sequence.block_ids) < needed:
            raise ValueError(f"sequence {index} needs {needed} blocks and has {len(sequence.block_ids)}")
        tables[index, :needed] = sequence.block_ids[:needed]
    return tables

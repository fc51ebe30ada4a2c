"""A step's rows as tensors. Prefill chunks and decode rows are the same thing: queries at arbitrary positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


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

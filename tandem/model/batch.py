"""A step's rows as tensors. Prefill chunks and decode rows are the same thing: queries at arbitrary positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """One sequence's part of a step: `token_ids` at positions ``start .. start + len(token_ids)``.

    `block_ids` cover every position up to the last row's; a sequence brings the same list in each of its steps, which
    grows at its end alone. KV of positions before `start` is in place. Rows may instead be at chosen `positions`, as
    many as tokens, rising from `start` on: KV of those between them is in place as well.
    """

    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    positions: Sequence[int] | None = None

    @property
    def at(self) -> Sequence[int]:
        """Every row's position."""
        return range(self.start, self.start + len(self.token_ids)) if self.positions is None else self.positions

    @property
    def num_context_tokens(self) -> int:
        """What the last row sees, itself included."""
        return self.start + len(self.token_ids) if self.positions is None else self.positions[-1] + 1


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
    has_chosen_rows: bool = False  # some rows are not the last ones of their contexts


def prepare_batch(rows: Sequence[SequenceRows], block_size: int, device: torch.device = _CPU) -> ForwardBatch:
    """Lays the sequences' rows out one after another, on `device`; every one brings at least one row.

    ValueError: no sequences, one without rows, or one whose blocks do not cover its last position.
    """
    positions = [sequence.at for sequence in rows]
    query_lens = [*map(len, positions)]
    if not all(query_lens) or not rows:
        raise ValueError("a batch needs sequences, and each of them rows")
    context_lens = [chosen[-1] + 1 for chosen in positions]
    tables = _block_tables(rows, context_lens, block_size)
    query_start = [0, *accumulate(query_lens)]
    parts = (
        [token_id for sequence in rows for token_id in sequence.token_ids],
        [*chain.from_iterable(positions)],
        [slot for sequence in rows for slot in _slots(sequence, block_size)],
        query_start,
        context_lens,
        tables,
        [start - 1 for start in query_start[1:]],
    )
    # One array for all: at a decode step's size each conversion costs more than what is converted.
    flat = _on(device, torch.from_numpy(np.array([*chain.from_iterable(parts)], dtype=np.int64)))
    token_ids, row_positions, slots, starts, contexts, blocks, last_rows = torch.split(flat, [*map(len, parts)])
    return ForwardBatch(
        token_ids=token_ids,
        positions=row_positions,
        slot_mapping=slots,
        query_start=starts,
        context_lens=contexts,
        block_tables=blocks.view(len(rows), -1),
        last_rows=last_rows,
        max_query_len=max(query_lens),
        max_context_len=max(context_lens),
        has_chosen_rows=any(sequence.positions is not None for sequence in rows),
    )


def _on(device: torch.device, numbers: torch.Tensor) -> torch.Tensor:
    """To a GPU by one copy for which nobody waits."""
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)


def _slots(sequence: SequenceRows, block_size: int) -> Iterator[int]:
    """Of the sequence's rows."""
    return (sequence.block_ids[position // block_size] * block_size + position % block_size for position in sequence.at)


def _block_tables(rows: Sequence[SequenceRows], context_lens: Sequence[int], block_size: int) -> list[int]:
    """One after another, checked and padded with 0: a row must never be stored into another sequence's block."""
    most = -(-max(context_lens) // block_size)
    tables: list[int] = []
    for index, (sequence, context_len) in enumerate(zip(rows, context_lens, strict=True)):
        needed = -(-context_len // block_size)
        if len(sequence.block_ids) < needed:
            raise ValueError(f"sequence {index} needs {needed} blocks and has {len(sequence.block_ids)}")
        tables += sequence.block_ids[:needed]
        tables += [0] * (most - needed)
    return tables

"""A decode step as the host writes it, row by row, and only what has changed since this buffer was written last.

There are two for each bucket: while the device works on what was copied from one, the next step is written into the
other as far as it can be foreseen. What comes true then is not written again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tandem.model.batch import SequenceRows
from tandem.runner.cuda.buckets import Bucket
from tandem.runner.cuda.inputs import MAX_BANNED, host_tensor, packing_of
from tandem.runner.sampler import Draw
from tandem.types import SamplingSpec

GREEDY = SamplingSpec(temperature=0.0)


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One sequence of a decode step; its token is not known yet when the row is foreseen."""

    block_ids: Sequence[int]  # a sequence's own: it may grow, what is in it stays
    position: int
    sampling: SamplingSpec
    draw_position: int
    banned_token_ids: Sequence[int]

    @property
    def next(self) -> "DecodeRow":
        """As it will be in the next step, should the sequence go on."""
        return DecodeRow(
            self.block_ids, self.position + 1, self.sampling, self.draw_position + 1, self.banned_token_ids
        )

    def is_same(self, other: "DecodeRow | None") -> bool:
        """Whether there is nothing to write; without a look at the blocks, of which there are many."""
        return (
            other is not None
            and self.block_ids is other.block_ids
            and self.position == other.position
            and self.draw_position == other.draw_position
            and self.sampling is other.sampling
            and self.banned_token_ids == other.banned_token_ids
        )


def decode_row(rows: SequenceRows, draw: Draw | None) -> DecodeRow:
    """Of a sequence with one row. Without a draw its token is the likeliest, and nobody looks at it."""
    if draw is None:
        return DecodeRow(rows.block_ids, rows.start, GREEDY, 0, ())
    banned = draw.banned_token_ids if len(draw.banned_token_ids) <= MAX_BANNED else ()
    return DecodeRow(rows.block_ids, rows.start, draw.sampling, draw.position, banned)


class Stage:
    """One host buffer of a bucket; `buffer` is laid out as the device's."""

    def __init__(self, bucket: Bucket, block_size: int, device: torch.device) -> None:
        """All rows are padding."""
        packing = packing_of(bucket)
        self.buffer = host_tensor((packing.num_bytes,), torch.uint8, device)
        self._arrays = {name: view.numpy() for name, view in packing.views(self.buffer).items()}
        self._arrays["slot_mapping"][:] = -1
        self._block_size = block_size
        self._written: list[DecodeRow | None] = [None] * bucket.num_rows
        self._num_blocks = [0] * bucket.num_rows  # of the table of `_written`'s row
        self._num_rows = 0

    def write(self, token_ids: Sequence[int], rows: Sequence[DecodeRow]) -> None:
        """The step's rows; what is left of the bucket is padding. ValueError: blocks that do not cover a row."""
        for index, row in enumerate(rows):
            if not row.is_same(self._written[index]):
                self._write_row(index, row)
        self._arrays["token_ids"][: len(rows)] = token_ids
        self._pad(len(rows))

    def foresee(self, rows: Sequence[DecodeRow]) -> None:
        """Rows of the next step, as far as their blocks are known."""
        for index, row in enumerate(rows):
            if row.position < len(row.block_ids) * self._block_size:
                self._write_row(index, row)
        self._num_rows = max(self._num_rows, len(rows))

    def _write_row(self, index: int, row: DecodeRow) -> None:
        block_index, offset = divmod(row.position, self._block_size)
        if block_index >= len(row.block_ids):
            raise ValueError(f"sequence {index} needs {block_index + 1} blocks and has {len(row.block_ids)}")
        self._write_blocks(index, row, block_index + 1)
        arrays, sampling = self._arrays, row.sampling
        arrays["positions"][index] = row.position
        arrays["context_lens"][index] = row.position + 1
        arrays["slot_mapping"][index] = row.block_ids[block_index] * self._block_size + offset
        arrays["draw_position"][index] = row.draw_position
        arrays["temperature"][index] = sampling.temperature
        arrays["top_k"][index] = sampling.top_k
        arrays["top_p"][index] = sampling.top_p
        arrays["min_p"][index] = sampling.min_p
        arrays["seed"][index] = (sampling.seed + 2**63) % 2**64 - 2**63  # the low 64 bits, as int64 holds them
        arrays["num_banned"][index] = len(row.banned_token_ids)
        arrays["banned_ids"][index, : len(row.banned_token_ids)] = row.banned_token_ids
        self._written[index] = row

    def _write_blocks(self, index: int, row: DecodeRow, num_needed: int) -> None:
        """Those that the table lacks. Entries behind a row's last block are never read."""
        before = self._written[index]
        known = self._num_blocks[index] if before is not None and before.block_ids is row.block_ids else 0
        if known < num_needed:
            self._arrays["block_tables"][index, known:num_needed] = row.block_ids[known:num_needed]
        self._num_blocks[index] = max(known, num_needed)

    def _pad(self, num_rows: int) -> None:
        """Rows behind the last that were another step's."""
        stale = slice(num_rows, self._num_rows)
        self._arrays["slot_mapping"][stale] = -1
        for name in ("token_ids", "positions", "context_lens", "temperature", "top_k", "num_banned"):
            self._arrays[name][stale] = 0
        self._written[stale] = [None] * max(0, self._num_rows - num_rows)
        self._num_rows = num_rows

"""Steps of paged attention over caches whose unused slots are NaN, and dense float64 attention to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kernels.paged_attention import TILE_ROWS
from kernels.store_kv import store_kv
from kernels.table import Kernels, torch_kernels

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 2, 24


@dataclass(frozen=True)
class Sequence64:
    """One sequence's whole context, of values that bfloat16 has; its last `num_rows` positions are the step's rows."""

    query: torch.Tensor  # [num_rows, num_heads, head_dim]
    key: torch.Tensor  # [context_len, num_kv_heads, head_dim]
    value: torch.Tensor


def make_sequence(
    context_len: int,
    num_rows: int,
    generator: torch.Generator,
    heads: tuple[int, int, int] = (NUM_HEADS, NUM_KV_HEADS, HEAD_DIM),
) -> Sequence64:
    num_heads, num_kv_heads, head_dim = heads

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().double()

    kv_shape = (context_len, num_kv_heads, head_dim)
    return Sequence64(normal(num_rows, num_heads, head_dim), normal(*kv_shape), normal(*kv_shape))


def dense_attention(sequence: Sequence64, sliding_window: int | None = None) -> torch.Tensor:
    """Row by row, head by head, from the definition."""
    scale = sequence.query.shape[-1] ** -0.5
    output = torch.empty_like(sequence.query)
    first_position = len(sequence.key) - len(sequence.query)
    for row, query in enumerate(sequence.query):
        position = first_position + row
        first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
        for head in range(len(query)):
            kv_head = head * sequence.key.shape[1] // len(query)
            keys = sequence.key[first : position + 1, kv_head]
            weights = (keys @ query[head] * scale).softmax(0)
            output[row, head] = weights @ sequence.value[first : position + 1, kv_head]
    return output


class PagedStep:
    """Scatters the sequences into a poisoned cache, through permuted block tables."""

    def __init__(
        self,
        sequences: Sequence[Sequence64],
        block_size: int,
        dtype: torch.dtype = torch.float32,
        kernels: Kernels | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.block_size, self.dtype, self.kernels = block_size, dtype, kernels or torch_kernels()
        num_kv_heads, head_dim = sequences[0].key.shape[1:]
        num_blocks = [-(-len(sequence.key) // block_size) for sequence in sequences]
        total = sum(num_blocks) + 3
        order = torch.randperm(total, generator=torch.Generator().manual_seed(1))
        shape = (total, block_size, num_kv_heads, head_dim)
        self.key_cache = torch.full(shape, float("nan"), dtype=dtype)
        self.value_cache = torch.full(shape, float("nan"), dtype=dtype)
        self.block_tables = torch.zeros(len(sequences), max(num_blocks), dtype=torch.int64)
        self.block_tables += order[-1]  # the padding names a block of NaN
        for index, (sequence, count) in enumerate(zip(sequences, num_blocks, strict=True)):
            start = sum(num_blocks[:index])
            self.block_tables[index, :count] = order[start : start + count]
            self._store(sequence, self.block_tables[index])
        lengths = torch.tensor([len(sequence.query) for sequence in sequences])
        self.query_start = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
        self.context_lens = torch.tensor([len(sequence.key) for sequence in sequences])
        self.query = torch.cat([sequence.query for sequence in sequences]).to(dtype)
        self.positions: torch.Tensor | None = None
        self._move(device or torch.device("cpu"))

    def choose(self, chosen: Sequence[Sequence[int]]) -> torch.Tensor:
        """The step has these positions' rows alone, of sequences that brought all; which of the rows these are."""
        starts = self.query_start.tolist()
        rows = torch.tensor([start + at for start, positions in zip(starts, chosen, strict=False) for at in positions])
        lengths = torch.tensor([0, *map(len, chosen)]).cumsum(0)
        places = torch.tensor([at for positions in chosen for at in positions])
        self.context_lens = torch.tensor([positions[-1] + 1 for positions in chosen]).to(self.context_lens)
        self.query_start, self.positions = lengths.to(self.query_start), places.to(self.query_start)
        self.query = self.query[rows.to(self.query.device)]
        return rows

    def _move(self, device: torch.device) -> None:
        for name in ("key_cache", "value_cache", "block_tables", "query_start", "context_lens", "query"):
            setattr(self, name, getattr(self, name).to(device))

    def _store(self, sequence: Sequence64, table: torch.Tensor) -> None:
        slots = self.slots(table, torch.arange(len(sequence.key)))
        store_kv(sequence.key, sequence.value, self.key_cache, self.value_cache, slots)

    def slots(self, table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return table[positions // self.block_size] * self.block_size + positions % self.block_size

    def plan(self, sliding_window: int | None = None) -> Any:
        return self.kernels.plan_attention(
            self.block_tables,
            self.query_start,
            self.context_lens,
            block_size=self.block_size,
            num_kv_heads=self.key_cache.shape[2],
            sliding_window=sliding_window,
            positions=self.positions,
        )

    def attention(self, sliding_window: int | None = None) -> torch.Tensor:
        return self.kernels.paged_attention(
            self.query, self.key_cache, self.value_cache, self.plan(sliding_window), scale=self.query.shape[-1] ** -0.5
        )


def sequences_of(shapes: Sequence[tuple[int, int]], seed: int = 0) -> list[Sequence64]:
    generator = torch.Generator().manual_seed(seed)
    return [make_sequence(context_len, num_rows, generator) for context_len, num_rows in shapes]


CHOSEN = {
    "one sequence": [(200, [0, 3, 4, 5, 90, 91, 130, 199])],
    "more rows than a tile": [(400, [*range(7, 330, 2), 399])],
    "beside decode": [(70, [69]), (300, [*range(20, 60), *range(200, 300)]), (90, [17, 89]), (40, [39])],
    "not to the end": [(150, [5, 80]), (150, [*range(0, 120, 3)])],
}
"""Whole sequences' lengths, and the positions whose rows are the step's."""

BATCHES = {
    "one token": [(1, 1)],
    "whole prompt": [(37, 37)],
    "more rows than a tile": [(2 * TILE_ROWS + 5, 2 * TILE_ROWS + 5)],
    "a chunk in the middle of tiles": [(3 * TILE_ROWS, TILE_ROWS + 9)],
    "decode of unlike lengths": [(1, 1), (2, 1), (16, 1), (17, 1), (130, 1), (5, 1), (63, 1), (64, 1)],
    "decode and chunks": [(9, 1), (50, 7), (33, 33), (200, 1), (70, 2)],
}

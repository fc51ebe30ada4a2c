"""Attention of prefill chunks: tiles of query rows, the query heads of a key head folded into a tile's rows."""

from dataclasses import dataclass

import torch
import triton
from triton import language as tl

from kernels.gpu.attend import NO_SCORE, attend
from kernels.gpu.attention_plan import TABLES, GpuPlan, Heads

_TABLE_SPAN = tl.constexpr(128)  # of `query_start`, read at once


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Query rows times heads, and keys, of one step of the kernel; what keeps both in registers and shared memory."""

    row_tile: int
    key_tile: int
    num_warps: int
    num_stages: int


_TILINGS = {  # by the power of two that holds a head
    64: _Tiling(row_tile=128, key_tile=64, num_warps=4, num_stages=3),
    128: _Tiling(row_tile=128, key_tile=64, num_warps=8, num_stages=3),
    256: _Tiling(row_tile=128, key_tile=32, num_warps=8, num_stages=3),
}


def chunk_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    plan: GpuPlan,
    *,
    heads: Heads,
    output: torch.Tensor,
) -> None:
    """Writes the rows of sequences that bring more than one; see `kernels.paged_attention.paged_attention`.

    One program a tile and key head. The number of tiles depends on the rows' distribution, which only the device knows:
    a sequence of n rows starts at most ``n // positions + 1`` of them, and programs beyond the last tile end at once.
    """
    tiling = _TILINGS[max(64, heads.dims)]
    positions = tiling.row_tile // heads.group
    num_tiles = query.shape[0] // positions + plan.num_seqs
    _attend_chunks[(num_tiles, heads.num_kv_heads)](
        query,
        key_cache,
        value_cache,
        output,
        plan.block_tables,
        plan.query_start,
        plan.context_lens,
        plan.context_lens if plan.positions is None else plan.positions,
        plan.num_seqs,
        plan.block_tables.stride(0),
        query.stride(0),
        heads.score_scale,
        heads.value_scale,
        is_chosen=plan.positions is not None,
        sliding_window=plan.sliding_window,
        block_size=plan.block_size,
        num_kv_heads=heads.num_kv_heads,
        group=heads.group,
        head_dim=heads.head_dim,
        dims=heads.dims,
        tile_positions=positions,
        row_tile=tiling.row_tile,
        key_tile=tiling.key_tile,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )


@triton.jit
def _sequence_of_tile(
    tile: tl.tensor, query_start: tl.tensor, num_seqs: tl.tensor, tile_positions: tl.constexpr
) -> tl.tensor:
    """The last sequence whose first tile, ``query_start // tile_positions + sequence``, is not past `tile`."""
    count = 0
    for first in range(0, num_seqs, _TABLE_SPAN):
        sequences = first + tl.arange(0, _TABLE_SPAN)
        starts = tl.load(query_start + sequences, mask=sequences < num_seqs, other=0)
        has_begun = (sequences < num_seqs) & (starts // tile_positions + sequences <= tile)
        count += tl.sum(has_begun.to(tl.int32), 0)
    return count - 1


@triton.jit
def _spans(first: tl.tensor, last: tl.tensor, sliding_window: tl.constexpr, key_tile: tl.constexpr) -> tl.tensor:
    """Where the keys of rows at ``first..last`` start, and from where until where each row sees all of them."""
    start, all_from = 0, 0
    if sliding_window > 0:
        start = tl.maximum(first + 1 - sliding_window, 0) // key_tile * key_tile
        all_from = tl.maximum(last + key_tile - sliding_window, 0) // key_tile * key_tile
    all_until = tl.maximum((first + 1) // key_tile * key_tile, start)
    return start, tl.minimum(all_from, all_until), all_until


@triton.jit(do_not_specialize=["num_seqs", "table_stride"], do_not_specialize_on_alignment=TABLES)
def _attend_chunks(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    output: tl.tensor,
    block_tables: tl.tensor,
    query_start: tl.tensor,
    context_lens: tl.tensor,
    row_positions: tl.tensor,  # read where rows are chosen ones of their context
    num_seqs: tl.tensor,
    table_stride: tl.tensor,
    query_stride: tl.tensor,
    score_scale: tl.tensor,
    value_scale: tl.tensor,
    is_chosen: tl.constexpr,
    sliding_window: tl.constexpr,
    block_size: tl.constexpr,
    num_kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    dims: tl.constexpr,
    tile_positions: tl.constexpr,
    row_tile: tl.constexpr,
    key_tile: tl.constexpr,
) -> None:
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # a chunk's last tiles see most keys: they start first
    kv_head = tl.program_id(1)
    sequence = _sequence_of_tile(tile, query_start, num_seqs, tile_positions)
    first_row = tl.load(query_start + sequence).to(tl.int64)
    num_rows = (tl.load(query_start + sequence + 1) - first_row).to(tl.int32)
    tile_start = (tile - (first_row // tile_positions).to(tl.int32) - sequence) * tile_positions
    if (tile_start >= num_rows) | (num_rows == 1):
        return
    first_position = tl.load(context_lens + sequence).to(tl.int32) - num_rows

    lane = tl.arange(0, row_tile)
    row = tile_start + lane // group
    head = kv_head * group + lane % group
    dim = tl.arange(0, dims)
    is_row = (row < num_rows) & (lane < tile_positions * group)
    is_element = is_row[:, None] & (dim[None, :] < head_dim)
    tile_rows = query + (first_row + row)[:, None] * query_stride + head[:, None] * head_dim + dim[None, :]
    tile_query = tl.load(tile_rows, mask=is_element, other=0.0)

    last_row = tl.minimum(tile_start + tile_positions, num_rows) - 1
    if is_chosen:
        of_sequence = row_positions + first_row
        first = tl.load(of_sequence + tile_start).to(tl.int32)  # positions of the tile's first and last row
        last = tl.load(of_sequence + last_row).to(tl.int32)
        positions = tl.load(of_sequence + tl.minimum(row, last_row)).to(tl.int32)
    else:
        first = first_position + tile_start
        last = first_position + last_row
        positions = tl.minimum(first_position + row, last)
    start, all_from, all_until = _spans(first, last, sliding_window, key_tile)

    table = block_tables + sequence * table_stride
    keys = key_cache + kv_head * head_dim
    values = value_cache + kv_head * head_dim
    stride: tl.constexpr = num_kv_heads * head_dim
    best = tl.full((row_tile,), NO_SCORE, tl.float32)
    weight_sum = tl.zeros((row_tile,), tl.float32)
    attended = tl.zeros((row_tile, dims), tl.float32)
    if sliding_window > 0:
        attended, best, weight_sum = attend(
            attended, best, weight_sum, tile_query, positions, keys, values, table, stride, start, all_from,
            score_scale, sliding_window, block_size, head_dim, dims, key_tile, True,
        )  # fmt: skip
    attended, best, weight_sum = attend(
        attended, best, weight_sum, tile_query, positions, keys, values, table, stride, all_from, all_until,
        score_scale, sliding_window, block_size, head_dim, dims, key_tile, False,
    )  # fmt: skip
    attended, best, weight_sum = attend(
        attended, best, weight_sum, tile_query, positions, keys, values, table, stride, all_until, last + 1,
        score_scale, sliding_window, block_size, head_dim, dims, key_tile, True,
    )  # fmt: skip
    attended = attended * (value_scale / weight_sum)[:, None]
    num_heads: tl.constexpr = num_kv_heads * group
    out_rows = output + ((first_row + row) * num_heads + head)[:, None] * head_dim + dim[None, :]
    tl.store(out_rows, attended.to(output.dtype.element_ty), mask=is_element)

"""Attention of decode rows: a row's keys are divided among programs, a second kernel unites their parts.

(Flash-Decoding, Dao et al. 2023.) How many parts depends on the SMs that the phase owns, which are fewer than kernels
see. A captured step's number of parts is fixed; the keys of each are found on the device, from the context's length.
"""

import torch
import triton
from triton import language as tl

from kernels.gpu.attend import NO_SCORE, attend
from kernels.gpu.attention_plan import TABLES, GpuPlan, Heads

KEY_TILE = 64
MAX_PARTS = 64
PROGRAMS_PER_SM = 8  # several run at once, and short ones fill the end of the last wave
_MIN_ROWS = 16  # of a matrix product on tensor cores


def row_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    plan: GpuPlan,
    *,
    heads: Heads,
    num_sms: int,
    output: torch.Tensor,
) -> None:
    """Writes the rows of sequences that bring one, and zeros where the context is empty; see `paged_attention`."""
    num_parts = num_key_parts(plan.num_seqs * heads.num_kv_heads, plan.max_keys, num_sms)
    attended, scores = output, output  # of one part: nothing to unite
    if num_parts > 1:
        scores = output.new_empty((plan.num_seqs, heads.num_heads, num_parts), dtype=torch.float32)
        attended = output.new_empty((*scores.shape, heads.head_dim), dtype=torch.float32)
    _attend_rows[(heads.num_kv_heads, plan.num_seqs, num_parts)](
        query,
        key_cache,
        value_cache,
        attended,
        scores,
        plan.block_tables,
        plan.query_start,
        plan.context_lens,
        plan.block_tables.stride(0),
        query.stride(0),
        num_parts,
        heads.score_scale,
        heads.value_scale,
        is_divided=num_parts > 1,
        sliding_window=plan.sliding_window,
        block_size=plan.block_size,
        num_kv_heads=heads.num_kv_heads,
        group=heads.group,
        head_dim=heads.head_dim,
        dims=heads.dims,
        row_tile=max(_MIN_ROWS, triton.next_power_of_2(heads.group)),
        key_tile=KEY_TILE,
        num_warps=4,
        num_stages=3,
    )
    if num_parts > 1:
        _unite_parts[(heads.num_heads, plan.num_seqs)](
            attended,
            scores,
            output,
            plan.query_start,
            plan.context_lens,
            num_parts,
            sliding_window=plan.sliding_window,
            head_dim=heads.head_dim,
            dims=heads.dims,
            part_tile=MAX_PARTS,
            key_tile=KEY_TILE,
        )


def num_key_parts(num_spans: int, max_keys: int, num_sms: int) -> int:
    """Into how many parts the keys of each of `num_spans` (sequence, key head) are divided, to keep `num_sms` busy."""
    wanted = PROGRAMS_PER_SM * num_sms // num_spans
    num_tiles = -(-max_keys // KEY_TILE)
    return max(1, min(wanted, MAX_PARTS, num_tiles))


@triton.jit
def _tiles_of_a_part(
    context_len: tl.tensor, first_key: tl.tensor, num_parts: tl.tensor, key_tile: tl.constexpr
) -> tl.tensor:
    num_tiles = tl.cdiv(context_len, key_tile) - first_key // key_tile
    return tl.maximum(tl.cdiv(num_tiles, num_parts), 1)


@triton.jit
def _first_key(context_len: tl.tensor, sliding_window: tl.constexpr) -> tl.tensor:
    """That the last row of a context sees."""
    first_key = 0
    if sliding_window > 0:
        first_key = tl.maximum(context_len - sliding_window, 0)
    return first_key


@triton.jit(do_not_specialize=["table_stride", "num_parts"], do_not_specialize_on_alignment=TABLES)
def _attend_rows(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    part_attended: tl.tensor,  # [num_seqs, num_heads, num_parts, head_dim]; of one part: the output's rows
    part_scores: tl.tensor,  # [num_seqs, num_heads, num_parts]: log2 of the weights' sum
    block_tables: tl.tensor,
    query_start: tl.tensor,
    context_lens: tl.tensor,
    table_stride: tl.tensor,
    query_stride: tl.tensor,
    num_parts: tl.tensor,
    score_scale: tl.tensor,
    value_scale: tl.tensor,
    is_divided: tl.constexpr,
    sliding_window: tl.constexpr,
    block_size: tl.constexpr,
    num_kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    dims: tl.constexpr,
    row_tile: tl.constexpr,
    key_tile: tl.constexpr,
) -> None:
    kv_head, sequence, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(query_start + sequence).to(tl.int64)
    if tl.load(query_start + sequence + 1) - row != 1:
        return
    context_len = tl.load(context_lens + sequence).to(tl.int32)
    first_key = _first_key(context_len, sliding_window)
    part_keys = _tiles_of_a_part(context_len, first_key, num_parts, key_tile) * key_tile
    start = first_key // key_tile * key_tile + part * part_keys
    if is_divided & (start >= context_len):
        return

    lane = tl.arange(0, row_tile)
    head = kv_head * group + lane
    dim = tl.arange(0, dims)
    is_element = (lane[:, None] < group) & (dim[None, :] < head_dim)
    row_heads = query + row * query_stride + head[:, None] * head_dim + dim[None, :]
    tile_query = tl.load(row_heads, mask=is_element, other=0.0)
    best = tl.full((row_tile,), NO_SCORE, tl.float32)
    weight_sum = tl.zeros((row_tile,), tl.float32)
    attended = tl.zeros((row_tile, dims), tl.float32)
    attended, best, weight_sum = attend(
        attended,
        best,
        weight_sum,
        tile_query,
        tl.zeros((row_tile,), tl.int32) + context_len - 1,
        key_cache + kv_head * head_dim,
        value_cache + kv_head * head_dim,
        block_tables + sequence * table_stride,
        num_kv_heads * head_dim,
        start,
        tl.minimum(start + part_keys, context_len),
        score_scale,
        sliding_window,
        block_size,
        head_dim,
        dims,
        key_tile,
        True,
    )
    num_heads: tl.constexpr = num_kv_heads * group
    attended = attended * (value_scale / tl.where(weight_sum > 0, weight_sum, 1.0))[:, None]
    if is_divided:
        place = (sequence * num_heads + head) * num_parts + part
        tl.store(part_scores + place, best + tl.log2(weight_sum), mask=lane < group)
    else:
        place = row * num_heads + head
    places = part_attended + place[:, None] * head_dim + dim[None, :]
    tl.store(places, attended.to(part_attended.dtype.element_ty), mask=is_element)


@triton.jit(do_not_specialize=["num_parts"], do_not_specialize_on_alignment=TABLES)
def _unite_parts(
    part_attended: tl.tensor,
    part_scores: tl.tensor,
    output: tl.tensor,
    query_start: tl.tensor,
    context_lens: tl.tensor,
    num_parts: tl.tensor,
    sliding_window: tl.constexpr,
    head_dim: tl.constexpr,
    dims: tl.constexpr,
    part_tile: tl.constexpr,
    key_tile: tl.constexpr,
) -> None:
    head, sequence = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(0)
    row = tl.load(query_start + sequence).to(tl.int64)
    if tl.load(query_start + sequence + 1) - row != 1:
        return
    context_len = tl.load(context_lens + sequence).to(tl.int32)
    first_key = _first_key(context_len, sliding_window)
    part_keys = _tiles_of_a_part(context_len, first_key, num_parts, key_tile) * key_tile
    parts = tl.arange(0, part_tile)
    is_written = (parts < num_parts) & (first_key // key_tile * key_tile + parts * part_keys < context_len)
    places = (sequence * num_heads + head) * num_parts + parts
    scores = tl.load(part_scores + places, mask=is_written, other=NO_SCORE)
    weights = tl.where(is_written, tl.exp2(scores - tl.max(scores, 0)), 0.0)
    dim = tl.arange(0, dims)
    mask = is_written[:, None] & (dim[None, :] < head_dim)
    attended = tl.load(part_attended + places[:, None] * head_dim + dim[None, :], mask=mask, other=0.0)
    weight_sum = tl.sum(weights, 0)
    united = tl.sum(attended * weights[:, None], 0) / tl.where(weight_sum > 0, weight_sum, 1.0)
    out_row = output + (row * num_heads + head) * head_dim + dim
    tl.store(out_row, united.to(output.dtype.element_ty), mask=dim < head_dim)

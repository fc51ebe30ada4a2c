"""Attention over a paged KV cache: prefill chunks and decode rows alike.

Sequence i's query rows are the last ``query_start[i + 1] - query_start[i]`` positions of its context, or chosen ones of
it; a row sees the keys at ``key_pos <= query_pos``, and with a sliding window only those at ``key_pos > query_pos -
sliding_window``.

`plan_attention` runs once a step, `paged_attention` once a layer. On CPU a plan gathers decode rows of like context
into one padded matrix product and cuts a prefill chunk into tiles of rows, each with only the keys that it can see.
Padding repeats a key of the sequence itself, so what lies in unused slots never enters the arithmetic.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

TILE_ROWS = 64  # scores of one tile stay in the second-level cache


@dataclass(frozen=True, slots=True)
class Tile:
    """Query rows that are multiplied with the same span of their sequences' gathered keys."""

    rows: torch.Tensor  # [num_seqs * num_rows] int64, by sequence
    num_rows: int  # of each sequence
    first_key: int  # of the gathered ones
    end_key: int
    mask: torch.Tensor | None  # [num_seqs, 1, num_rows, num_keys] float32, 0 or -inf; None: every key is seen


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """Sequences whose keys are gathered at once, padded to the longest."""

    num_seqs: int
    head_rows: torch.Tensor  # [num_seqs * num_kv_heads * num_keys] int64: slot * num_kv_heads + head
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What every layer of a step has in common."""

    groups: tuple[SequenceGroup, ...]


@dataclass(frozen=True, slots=True)
class _Span:
    """One sequence's rows of the step and the keys that any of them sees."""

    index: int  # in the batch
    first_row: int
    positions: Sequence[int]  # rising
    first_key: int

    @property
    def num_rows(self) -> int:
        return len(self.positions)

    @property
    def context_len(self) -> int:
        return self.positions[-1] + 1

    @property
    def num_keys(self) -> int:
        return self.context_len - self.first_key


def plan_attention(
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    block_size: int,
    num_kv_heads: int,
    sliding_window: int | None = None,
    positions: torch.Tensor | None = None,
) -> AttentionPlan:
    """Prepares a step's gathers and masks.

    `block_tables`: ``[num_seqs, max_blocks]`` int64; `query_start`: ``[num_seqs + 1]`` int64; `context_lens`:
    ``[num_seqs]`` int64, this step's rows included. Each sequence has at least one row. `positions`: ``[num_tokens]``
    int64, of rows chosen from their contexts: rising in each sequence, whose last row is at ``context_len - 1``.
    """
    row_positions = _row_positions(query_start.tolist(), context_lens.tolist(), positions)
    spans = _spans(query_start.tolist(), row_positions, sliding_window)
    groups = []
    for members in _grouped(spans):
        slots = _key_slots(members, block_tables, block_size)
        heads = torch.arange(num_kv_heads)[:, None]
        head_rows = slots[:, None, :] * num_kv_heads + heads  # [num_seqs, num_kv_heads, num_keys]
        tiles = tuple(_tiles(members, slots.shape[1], sliding_window))
        groups.append(SequenceGroup(len(members), head_rows.flatten(), tiles))
    return AttentionPlan(tuple(groups))


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
) -> torch.Tensor:
    """Attention of every row of the step, whose own keys and values are stored already.

    `query`: ``[num_tokens, num_heads, head_dim]``, row i being the plan's row i; `key_cache`, `value_cache`:
    ``[num_blocks, block_size, num_kv_heads, head_dim]``, contiguous. Scores are scaled and normalised in float32.
    Returns ``[num_tokens, num_heads, head_dim]`` in the query's dtype.
    """
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in plan.groups:
        keys = _gather(key_cache, group, query.dtype)
        values = _gather(value_cache, group, query.dtype)
        for tile in group.tiles:
            seen = slice(tile.first_key, tile.end_key)
            attended = _attend(query[tile.rows], keys[:, :, seen], values[:, :, seen], tile, scale)
            output.index_copy_(0, tile.rows, attended)
    return output


def _gather(cache: torch.Tensor, group: SequenceGroup, dtype: torch.dtype) -> torch.Tensor:
    """Keys or values of a group: ``[num_seqs, num_kv_heads, num_keys, head_dim]``."""
    num_kv_heads, head_dim = cache.shape[2:]
    gathered = cache.view(-1, head_dim).index_select(0, group.head_rows)
    return gathered.view(group.num_seqs, num_kv_heads, -1, head_dim).to(dtype)


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tile: Tile, scale: float) -> torch.Tensor:
    """One tile; the query heads of a key head are folded into the rows. Shapes as in `paged_attention`."""
    num_heads, head_dim = query.shape[1:]
    num_seqs, num_kv_heads, num_keys = keys.shape[:3]
    folded = (num_seqs, num_kv_heads, num_heads // num_kv_heads * tile.num_rows)
    by_head = query.view(num_seqs, tile.num_rows, num_heads, head_dim).transpose(1, 2)
    scores = torch.matmul(by_head.reshape(*folded, head_dim), keys.transpose(2, 3)).float().mul_(scale)
    if tile.mask is not None:
        scores.view(num_seqs, num_heads, tile.num_rows, num_keys).add_(tile.mask)
    attended = torch.matmul(scores.softmax(-1).to(values.dtype), values)
    unfolded = attended.view(num_seqs, num_heads, tile.num_rows, head_dim)
    return unfolded.transpose(1, 2).reshape(query.shape)


def _row_positions(
    query_start: Sequence[int], context_lens: Sequence[int], positions: torch.Tensor | None
) -> list[Sequence[int]]:
    """Of each sequence's rows; without `positions` the last ones of its context."""
    bounds = list(pairwise(query_start))
    if positions is not None:
        chosen = positions.tolist()
        return [chosen[first:end] for first, end in bounds]
    return [range(length - (end - first), length) for (first, end), length in zip(bounds, context_lens, strict=True)]


def _spans(
    query_start: Sequence[int], row_positions: Sequence[Sequence[int]], sliding_window: int | None
) -> list[_Span]:
    return [
        _Span(index, query_start[index], positions, _first_key(positions[0], sliding_window))
        for index, positions in enumerate(row_positions)
    ]


def _first_key(position: int, sliding_window: int | None) -> int:
    """The first key that the row at `position` sees."""
    return 0 if sliding_window is None else max(0, position + 1 - sliding_window)


def _grouped(spans: Sequence[_Span]) -> Iterator[list[_Span]]:
    """Decode rows by the power of two of their keys, so that padding at most doubles the work; chunks alone."""
    decode: dict[int, list[_Span]] = {}
    for span in spans:
        if span.num_rows == 1:
            decode.setdefault(span.num_keys.bit_length(), []).append(span)
        else:
            yield [span]
    yield from decode.values()


def _key_slots(members: Sequence[_Span], block_tables: torch.Tensor, block_size: int) -> torch.Tensor:
    """Slots of the members' keys, ``[num_seqs, num_keys]``; the shorter repeat their last key."""
    first_keys = torch.tensor([[span.first_key] for span in members])
    last_keys = torch.tensor([[span.context_len - 1] for span in members])
    positions = first_keys + torch.arange(max(span.num_keys for span in members))
    positions = torch.minimum(positions, last_keys)
    tables = block_tables[[span.index for span in members]]
    return tables.gather(1, positions // block_size) * block_size + positions % block_size


def _tiles(members: Sequence[_Span], num_keys: int, sliding_window: int | None) -> Iterator[Tile]:
    """Cuts a group's rows; more than one tile only for a chunk, which is alone in its group."""
    for start in range(0, members[0].num_rows, TILE_ROWS):
        num_rows = min(TILE_ROWS, members[0].num_rows - start)
        yield _tile(members, range(start, start + num_rows), num_keys, sliding_window)


def _tile(members: Sequence[_Span], rows: range, num_keys: int, sliding_window: int | None) -> Tile:
    """`rows` counts from each member's first row; `num_keys` from its first key, padding included."""
    first_rows = torch.tensor([[span.first_row] for span in members])
    first_key, end_key = 0, num_keys
    if len(members) == 1:
        positions = members[0].positions[rows.start : rows.stop]
        first_key = _first_key(positions[0], sliding_window) - members[0].first_key
        end_key = positions[-1] + 1 - members[0].first_key
    mask = _mask(members, rows, range(first_key, end_key), sliding_window)
    row_indices = (first_rows + torch.arange(rows.start, rows.stop)).flatten()
    return Tile(row_indices, len(rows), first_key, end_key, mask)


def _mask(members: Sequence[_Span], rows: range, keys: range, sliding_window: int | None) -> torch.Tensor | None:
    first_keys = torch.tensor([[[span.first_key]] for span in members])
    chosen = [list(span.positions[rows.start : rows.stop]) for span in members]
    query_positions = torch.tensor(chosen)[:, :, None]  # [num_seqs, num_rows, 1]
    key_positions = first_keys + torch.arange(keys.start, keys.stop)  # [num_seqs, 1, num_keys]
    seen = key_positions <= query_positions
    if sliding_window is not None:
        seen &= key_positions > query_positions - sliding_window
    if bool(seen.all()):
        return None
    mask = torch.zeros(seen.shape, dtype=torch.float32).masked_fill_(~seen, float("-inf"))
    return mask[:, None]

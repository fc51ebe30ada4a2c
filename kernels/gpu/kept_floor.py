"""Top-k, top-p and min-p on the device as one number a row: the least weight that is kept.

No row is sorted. The floor of top-k is the least f such that fewer than k weights are greater than f; that of top-p,
the least f such that the weights greater than f sum to less than p of all. Weights lie in [0, 1], where a float's bits
as an integer have its order, so a floor is found bit by bit: the exponent's over the whole row, the others over the
weights that have that exponent, which are few.
"""

import torch
import triton
from triton import language as tl

from kernels.gpu.adjust_logits import Scores
from kernels.gpu.sampling_rows import SamplingRows
from kernels.gpu.weights import row_best, weights_of

_TILE = 4096
_HIGHEST = tl.constexpr(1 << 29)  # bit of a float that is at most 1
_EXPONENT = tl.constexpr(1 << 23)  # the lowest bit of the exponent


def kept_floor(scores: Scores, rows: SamplingRows) -> torch.Tensor:
    """``[num_rows]`` float32: what `kernels.token_filters` keeps is at least this likely, relative to the likeliest."""
    num_rows, vocab_size = scores.logits.shape
    num_chunks = scores.best.shape[1]
    floor = scores.best.new_empty(num_rows)
    _kept_floor[(num_rows,)](
        scores.logits,
        scores.best,
        torch.empty_like(scores.logits),
        rows.temperature,
        rows.top_k,
        rows.top_p,
        rows.min_p,
        floor,
        vocab_size=vocab_size,
        num_chunks=num_chunks,
        chunk_tile=triton.next_power_of_2(num_chunks),
        tile=_TILE,
        num_warps=16,
    )
    return floor


@triton.jit
def _kept_floor(
    logits: tl.tensor,
    best: tl.tensor,
    scratch: tl.tensor,  # [num_rows, vocab_size] float32
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    floor: tl.tensor,
    vocab_size: tl.constexpr,
    num_chunks: tl.constexpr,
    chunk_tile: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    row_temperature = tl.load(temperature + row)
    k, p = tl.load(top_k + row), tl.load(top_p + row)
    key = (k * 0).to(tl.int32)  # the floor's bits
    if row_temperature > 0:
        row_logits = logits + row * vocab_size
        row_scratch = scratch + row * vocab_size
        greatest = row_best(best, row, num_chunks, chunk_tile)
        if k > 0:
            key = _least_key(
                row_logits, row_scratch, greatest, row_temperature, k.to(tl.float64), vocab_size, tile, False
            )
        if p < 1:
            kept = _mass_above(row_logits, greatest, row_temperature, key - 1, vocab_size, tile, True)
            key = _least_key(row_logits, row_scratch, greatest, row_temperature, p * kept, vocab_size, tile, True)
    least = tl.maximum(key.to(tl.float32, bitcast=True), tl.load(min_p + row).to(tl.float32))
    tl.store(floor + row, least)


@triton.jit
def _least_key(
    row_logits: tl.tensor,
    row_scratch: tl.tensor,
    greatest: tl.tensor,
    temperature: tl.tensor,
    target: tl.tensor,
    vocab_size: tl.constexpr,
    tile: tl.constexpr,
    weighted: tl.constexpr,
) -> tl.tensor:
    """The least key with less than `target` above it: of weights, or of their number."""
    key = (target * 0).to(tl.int32)
    bit = key + _HIGHEST
    while bit >= _EXPONENT:
        above = _mass_above(row_logits, greatest, temperature, key + bit - 1, vocab_size, tile, weighted)
        key = tl.where(above >= target, key + bit, key)
        bit = bit // 2
    last = key + _EXPONENT - 1
    higher = _mass_above(row_logits, greatest, temperature, last, vocab_size, tile, weighted)
    count = _gather(row_logits, row_scratch, greatest, temperature, key, vocab_size, tile)
    while bit > 0:
        above = higher + _gathered_above(row_scratch, count, key + bit - 1, tile, weighted)
        key = tl.where(above >= target, key + bit, key)
        bit = bit // 2
    return key


@triton.jit
def _mass(weight: tl.tensor, key: tl.tensor, weighted: tl.constexpr) -> tl.tensor:
    """What each weight greater than `key` counts for, float64."""
    is_above = weight.to(tl.int32, bitcast=True) > key
    return tl.where(is_above, weight if weighted else 1.0, 0.0).to(tl.float64)


@triton.jit
def _mass_above(
    row_logits: tl.tensor,
    greatest: tl.tensor,
    temperature: tl.tensor,
    key: tl.tensor,
    vocab_size: tl.constexpr,
    tile: tl.constexpr,
    weighted: tl.constexpr,
) -> tl.tensor:
    """Of the whole row."""
    total = tl.zeros((tile,), tl.float64)
    for start in range(0, vocab_size, tile):
        token = start + tl.arange(0, tile)
        total += _mass(weights_of(row_logits, token, vocab_size, greatest, temperature), key, weighted)
    return tl.sum(total, 0)


@triton.jit
def _gather(
    row_logits: tl.tensor,
    row_scratch: tl.tensor,
    greatest: tl.tensor,
    temperature: tl.tensor,
    key: tl.tensor,
    vocab_size: tl.constexpr,
    tile: tl.constexpr,
) -> tl.tensor:
    """Writes the weights with key's exponent one after another; returns how many."""
    count = 0
    for start in range(0, vocab_size, tile):
        token = start + tl.arange(0, tile)
        weight = weights_of(row_logits, token, vocab_size, greatest, temperature)
        chosen = weight.to(tl.int32, bitcast=True) // _EXPONENT == key // _EXPONENT
        chosen = chosen & (weight > 0)
        place = count + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(row_scratch + place, weight, mask=chosen)
        count += tl.sum(chosen.to(tl.int32), 0)
    tl.debug_barrier()  # other threads of this program read them
    return count


@triton.jit
def _gathered_above(
    row_scratch: tl.tensor, count: tl.tensor, key: tl.tensor, tile: tl.constexpr, weighted: tl.constexpr
) -> tl.tensor:
    total = tl.zeros((tile,), tl.float64)
    for start in range(0, count, tile):
        place = start + tl.arange(0, tile)
        total += _mass(tl.load(row_scratch + place, mask=place < count, other=0.0), key, weighted)
    return tl.sum(total, 0)

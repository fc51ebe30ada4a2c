"""The draw itself: the likeliest token, or the distribution function inverted in the order of token ids.

First by the sums of chunks of tokens, then within the chunk that was found; the number is the counter-based one of
`kernels.philox`, so that a token is drawn alike in any batch, phase or process.
"""

import torch
import triton
from triton import language as tl

from kernels.gpu.adjust_logits import Scores
from kernels.gpu.sampling_rows import SamplingRows
from kernels.gpu.weights import row_best, weights_of


def invert(scores: Scores, floor: torch.Tensor, rows: SamplingRows, chunk_tokens: int) -> torch.Tensor:
    """``[num_rows]`` int64: tokens of at least their row's `floor`; each is counted in `rows.seen`."""
    num_rows, vocab_size = scores.logits.shape
    num_chunks = scores.best.shape[1]
    shape = {
        "vocab_size": vocab_size,
        "num_chunks": num_chunks,
        "chunk_tile": triton.next_power_of_2(num_chunks),
        "chunk": chunk_tokens,
    }
    masses = scores.best.new_empty(scores.best.shape, dtype=torch.float64)
    _chunk_masses[(num_rows, num_chunks)](scores.logits, scores.best, floor, rows.temperature, masses, **shape)
    token_ids = scores.best_ids.new_empty(num_rows)
    _draw[(num_rows,)](
        scores.logits,
        scores.best,
        scores.best_ids,
        floor,
        masses,
        rows.temperature,
        rows.seed,
        rows.position,
        rows.seen_row,
        rows.seen,
        token_ids,
        **shape,
        num_warps=8,
    )
    return token_ids


@triton.jit
def _kept_weights(
    row_logits: tl.tensor,
    token: tl.tensor,
    vocab_size: tl.constexpr,
    greatest: tl.tensor,
    temperature: tl.tensor,
    floor: tl.tensor,
) -> tl.tensor:
    weight = weights_of(row_logits, token, vocab_size, greatest, temperature)
    return tl.where(weight >= floor, weight, 0.0).to(tl.float64)


@triton.jit
def _chunk_masses(
    logits: tl.tensor,
    best: tl.tensor,
    floor: tl.tensor,
    temperature: tl.tensor,
    masses: tl.tensor,
    vocab_size: tl.constexpr,
    num_chunks: tl.constexpr,
    chunk_tile: tl.constexpr,
    chunk: tl.constexpr,
) -> None:
    """The sum of what one chunk of a row keeps; nothing for a row without a temperature."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row_temperature = tl.load(temperature + row)
    if row_temperature == 0:
        return
    greatest = row_best(best, row, num_chunks, chunk_tile)
    token = part * chunk + tl.arange(0, chunk)
    row_floor = tl.load(floor + row)
    kept = _kept_weights(logits + row * vocab_size, token, vocab_size, greatest, row_temperature, row_floor)
    tl.store(masses + row * num_chunks + part, tl.sum(kept, 0))


@triton.jit
def _uniform(seed: tl.tensor, position: tl.tensor) -> tl.tensor:
    """In the open interval (0, 1), of 52 random bits; float64."""
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = low * 0
    first, second, _, _ = tl.philox(seed, low, high, zero, zero)
    bits = (first.to(tl.uint64) << 20) | (second.to(tl.uint64) >> 12)
    return (bits.to(tl.float64) + 0.5) * (1.0 / (1 << 52))


@triton.jit
def _draw(
    logits: tl.tensor,
    best: tl.tensor,
    best_ids: tl.tensor,
    floor: tl.tensor,
    masses: tl.tensor,
    temperature: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    seen_row: tl.tensor,
    seen: tl.tensor,
    token_ids: tl.tensor,
    vocab_size: tl.constexpr,
    num_chunks: tl.constexpr,
    chunk_tile: tl.constexpr,
    chunk: tl.constexpr,
) -> None:
    """One row. Where rounding puts the target past the end, the last kept token is drawn: never one of weight 0."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, chunk_tile)
    inside = index < num_chunks
    greatest_of_chunks = tl.load(best + row * num_chunks + index, mask=inside, other=float("-inf"))
    row_temperature = tl.load(temperature + row)
    token = tl.load(best_ids + row * num_chunks + tl.argmax(greatest_of_chunks, 0))
    if row_temperature > 0:
        mass = tl.load(masses + row * num_chunks + index, mask=inside, other=0.0)
        ends = tl.cumsum(mass, 0)
        target = _uniform(tl.load(seed + row), tl.load(position + row)) * tl.max(ends, 0)
        last_part = tl.max(tl.where(mass > 0, index, 0), 0)
        part = tl.minimum(tl.sum((ends <= target).to(tl.int32), 0), last_part)
        rest = target - tl.sum(tl.where(index == part, ends - mass, 0.0), 0)

        tokens = part * chunk + tl.arange(0, chunk)
        greatest = tl.max(greatest_of_chunks, 0)
        row_floor = tl.load(floor + row)
        kept = _kept_weights(logits + row * vocab_size, tokens, vocab_size, greatest, row_temperature, row_floor)
        reached = (kept > 0) & (tl.cumsum(kept, 0) > rest)
        last = tl.max(tl.where(kept > 0, tokens, 0), 0)
        token = tl.minimum(tl.min(tl.where(reached, tokens, vocab_size), 0), last).to(tl.int64)
    tl.store(token_ids + row, token)
    counts = tl.load(seen_row + row)
    if counts >= 0:
        place = seen + counts * vocab_size + token
        tl.store(place, tl.load(place) + 1)

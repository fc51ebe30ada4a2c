"""Probabilities inside kernels: relative to the likeliest token's, never divided by their sum."""

import triton
from triton import language as tl


@triton.jit
def row_best(best: tl.tensor, row: tl.tensor, num_chunks: tl.constexpr, chunk_tile: tl.constexpr) -> tl.tensor:
    """The greatest score of a row."""
    index = tl.arange(0, chunk_tile)
    return tl.max(tl.load(best + row * num_chunks + index, mask=index < num_chunks, other=float("-inf")), 0)


@triton.jit
def weights_of(
    row_scores: tl.tensor, token: tl.tensor, vocab_size: tl.constexpr, best: tl.tensor, temperature: tl.tensor
) -> tl.tensor:
    """Of some tokens of a row: 1 for the likeliest, 0 past the vocabulary's end. The same bits in every kernel."""
    score = tl.load(row_scores + token, mask=token < vocab_size, other=float("-inf"))
    return tl.exp(tl.div_rn(score - best, temperature))

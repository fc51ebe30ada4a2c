"""Draws each row's next token on the device, so that a decode step ends with token ids in its memory.

The reference is `tandem.runner.sampler.sample`. Its token comes out, but where sums that differ in their last bits lie
on either side of a bound.
"""

import torch

from kernels.gpu.adjust_logits import adjust_logits
from kernels.gpu.inversion import invert
from kernels.gpu.kept_floor import kept_floor
from kernels.gpu.sampling_rows import SamplingRows

CHUNK_TOKENS = 4096  # of the vocabulary, for one program


def sample_tokens(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """One token for each row of `logits`, ``[num_rows, vocab_size]`` float32, contiguous: ``[num_rows]`` int64.

    `logits` stays. Each token is counted in `rows.seen` where its row has one there. Rows that pad a captured step may
    hold anything finite, and -1 for their `seen_row`.
    """
    scores = adjust_logits(logits, rows, CHUNK_TOKENS)
    floor = kept_floor(scores, rows)
    return invert(scores, floor, rows, CHUNK_TOKENS)

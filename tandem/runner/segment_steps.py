"""What steps do of prompts that reuse segments, beside running rows through the model."""

from collections.abc import Mapping, Sequence

import torch

from kernels.quantised import Weight
from kernels.table import Kernels
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.layers import rotary_frequencies
from tandem.reuse.plan import Scores
from tandem.runner.probe import Probe
from tandem.runner.segment_kv import SegmentKv
from tandem.runner.steps import EntryCopy


class SegmentSteps:
    """A `SegmentRunner` over a KV cache that it does not own. For the thread that computes."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Weight], kernels: Kernels, kv_cache: torch.Tensor
    ) -> None:
        """`kv_cache` is ``[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]``."""
        frequencies = rotary_frequencies(config).to(kv_cache.device)
        self._segments = SegmentKv(kernels, kv_cache, frequencies)
        self._probe = Probe(config, weights, kernels, kv_cache)

    def place(self, copies: Sequence[EntryCopy]) -> None:
        """See `SegmentRunner`."""
        for copy in copies:
            self._segments.place(copy.placement, copy.entry_block_ids, copy.block_ids)

    def probe(self, rows: SequenceRows, num_asking: int) -> Scores:
        """See `SegmentRunner`. On a GPU it waits for the answer, so that nothing is written when the step has ended."""
        looked_at: Scores = (self._probe.attention(rows, num_asking) * num_asking).cpu().numpy()
        return looked_at

    def look(self, rows: SequenceRows) -> Scores:
        """See `SegmentRunner`. On a GPU it waits for the answer."""
        looked_at: Scores = self._probe.look(rows).cpu().numpy()
        return looked_at

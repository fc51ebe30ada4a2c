"""A phase's one way to the model: rows in, logits out."""

from collections.abc import Sequence

import torch

from tandem.model.batch import ForwardBatch, SequenceRows, prepare_batch
from tandem.model.family import Decoder
from tandem.runner.steps import TokenCopy


class ModelRunner:
    """Runs a decoder over the KV segment. The caller owns both, and calls from one thread at a time."""

    def __init__(self, decoder: Decoder, kv_cache: torch.Tensor, block_size: int) -> None:
        """`kv_cache` is ``[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]``."""
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._block_size = block_size

    @torch.inference_mode()
    def copy_tokens(self, copies: Sequence[TokenCopy]) -> None:
        """Of all layers; on a GPU, in the order of what runs on the calling thread's stream."""
        for copy in copies:
            source = self._kv_cache[:, :, copy.source_block_id, : copy.num_tokens]
            self._kv_cache[:, :, copy.target_block_id, : copy.num_tokens] = source

    @torch.inference_mode()
    def execute(self, rows: Sequence[SequenceRows]) -> torch.Tensor:
        """Stores the rows' KV; returns the logits of each sequence's last row, ``[num_seqs, vocab_size]`` float32.

        ValueError as of `prepare_batch`.
        """
        return self.forward(prepare_batch(rows, self._block_size, self._kv_cache.device))

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """`execute` of a batch that lies on the model's device."""
        hidden = self._decoder.hidden_states(batch, self._kv_cache)
        last = hidden if batch.max_query_len == 1 else hidden[batch.last_rows]
        return self._decoder.logits(last)

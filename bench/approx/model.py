"""A model in this process over a paged KV cache, with what reuse needs: entries, probes, chosen rows."""

from collections.abc import Sequence

import torch

from bench.accuracy.model import BLOCK_SIZE, load_weights
from bench.approx.item import Item
from bench.approx.settings import Settings
from kernels.choice import choose_kernels
from tandem.errors import ConfigError
from tandem.kv.layout import num_blocks_for
from tandem.model.batch import SequenceRows, prepare_batch
from tandem.model.config import ModelConfig
from tandem.model.layers import rotary_frequencies
from tandem.model.quantisation import NONE
from tandem.model.registry import get_family
from tandem.model.source import ModelSource
from tandem.reuse.plan import Placement
from tandem.runner.probe import Probe
from tandem.runner.segment_kv import SegmentKv
from tandem.runner.selective import chosen_rows


def room_for(items: Sequence[Item], settings: Settings, config: ModelConfig) -> int:
    """Tokens of the longest item's cache: in full, by cases, and its documents' entries.

    ConfigError: an item is longer than the model's positions.
    """
    longest = max(len(item.token_ids) for item in items) + settings.continuation_tokens
    if longest > config.max_position_embeddings:
        raise ConfigError("model", f"it has {config.max_position_embeddings} positions; an item needs {longest}")
    num_places = 2 + max(len(item.spans) for item in items)
    return 3 * longest + num_places * BLOCK_SIZE


class ApproxModel:
    """Blocks are dealt out one after another and given back all at once. One sequence a step."""

    def __init__(self, source: ModelSource, num_tokens: int, dtype: torch.dtype) -> None:
        """Room for `num_tokens`. ModelFormatError, DeviceError."""
        config = source.config
        weights = load_weights(source, str(dtype).removeprefix("torch."), NONE)
        kernels = choose_kernels(dtype).kernels
        num_blocks = num_blocks_for(num_tokens, BLOCK_SIZE)
        shape = (config.num_layers, 2, num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        self.kv_cache = torch.zeros(shape, dtype=dtype)
        self.kernels_name = kernels.name
        self._decoder = get_family(config.family).build(config, weights, kernels)
        self.probe = Probe(config, weights, kernels, self.kv_cache)
        self._segments = SegmentKv(kernels, self.kv_cache, rotary_frequencies(config))
        self._first_token_id = config.bos_token_id or 0
        self._num_taken = 0

    def take_blocks(self, num_tokens: int) -> range:
        """For so many tokens; the caller has made room for them."""
        start = self._num_taken
        self._num_taken += num_blocks_for(num_tokens, BLOCK_SIZE)
        return range(start, self._num_taken)

    def give_back(self) -> None:
        """All blocks."""
        self._num_taken = 0

    def build(self, token_ids: Sequence[int]) -> range:
        """A canonical entry; its blocks."""
        entry = [self._first_token_id, *token_ids]
        blocks = self.take_blocks(len(entry))
        self._hidden(SequenceRows(entry, 0, blocks))
        return blocks

    def place(self, placement: Placement, entry: Sequence[int], blocks: Sequence[int]) -> None:
        """See `SegmentKv`."""
        self._segments.place(placement, entry, blocks)

    def values(self, blocks: Sequence[int]) -> torch.Tensor:
        """Of all layers: ``[num_layers, num_slots, num_kv_heads * head_dim]`` float32."""
        return self.kv_cache[:, 1, list(blocks)].flatten(1, 2).flatten(2).float()

    def prefill(self, token_ids: Sequence[int], blocks: Sequence[int], chunk_tokens: int) -> torch.Tensor:
        """All of it; the last token's logits, ``[vocab_size]`` float32."""
        for start in range(0, len(token_ids), chunk_tokens):
            hidden = self._hidden(SequenceRows(token_ids[start : start + chunk_tokens], start, blocks))
        return self._decoder.logits(hidden[-1:])[0]

    def compute(self, token_ids: Sequence[int], positions: Sequence[int], blocks: Sequence[int]) -> torch.Tensor:
        """Chosen positions, the last one's logits, ``[vocab_size]`` float32."""
        hidden = self._hidden(chosen_rows(token_ids, positions, blocks))
        return self._decoder.logits(hidden[-1:])[0]

    def extend(self, token_ids: Sequence[int], start: int, blocks: Sequence[int]) -> torch.Tensor:
        """More tokens, every one's logits: ``[len(token_ids), vocab_size]`` float32."""
        return self._decoder.logits(self._hidden(SequenceRows(token_ids, start, blocks)))

    def _hidden(self, rows: SequenceRows) -> torch.Tensor:
        return self._decoder.hidden_states(prepare_batch([rows], BLOCK_SIZE), self.kv_cache)

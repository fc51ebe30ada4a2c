"""A model in this process, its weights stored as memd would store them."""

from collections.abc import Mapping, Sequence

import torch

from kernels.quantised import Weight
from kernels.table import Kernels
from tandem.device.cpu.memory import MemfdExporter, MemfdImporter
from tandem.kv.layout import num_blocks_for
from tandem.model.batch import SequenceRows, prepare_batch
from tandem.model.config import ModelConfig
from tandem.model.manifest import build_manifest
from tandem.model.registry import get_family
from tandem.model.source import ModelSource, fill
from tandem.model.views import weight_views

BLOCK_SIZE = 16


def load_weights(source: ModelSource, dtype: str, quantization: str) -> Mapping[str, Weight]:
    """By memd's loader's own steps. ModelFormatError, DeviceError."""
    parameters = get_family(source.config.family).parameters(source.config)
    manifest = build_manifest(parameters, dtype, quantization)
    segment = MemfdExporter().create("weights", manifest.total_bytes)
    weights = weight_views(MemfdImporter().map(segment, writable=True), manifest)
    segment.close()
    fill(source, parameters, manifest, weights)
    return weights


class TextModel:
    """Sequences of at most `max_tokens`, each with a place of its own in the cache."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Weight],
        kernels: Kernels,
        *,
        dtype: torch.dtype,
        num_sequences: int,
        max_tokens: int,
    ) -> None:
        self._decoder = get_family(config.family).build(config, weights, kernels)
        self._blocks_each = num_blocks_for(max_tokens, BLOCK_SIZE)
        num_blocks = self._blocks_each * num_sequences
        shape = (config.num_layers, 2, num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        self._kv_cache = torch.zeros(shape, dtype=dtype)

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[Sequence[int]], start: int) -> torch.Tensor:
        """Of equally many tokens of each sequence, from position `start` on: ``[num_tokens, vocab_size]`` float32."""
        rows = [SequenceRows(ids, start, self._block_ids(number)) for number, ids in enumerate(token_ids)]
        batch = prepare_batch(rows, BLOCK_SIZE)
        return self._decoder.logits(self._decoder.hidden_states(batch, self._kv_cache))

    def _block_ids(self, sequence: int) -> range:
        return range(sequence * self._blocks_each, (sequence + 1) * self._blocks_each)

"""What a model family gives: its parameters as a table, and its forward pass. One file a family.

The table is the one place that says how a checkpoint's tensors are packed: a parameter is the concatenation, along its
first dimension, of the checkpoint tensors it names (Hugging Face names; other formats are renamed by their reader).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from kernels.quantised import Weight
from kernels.table import Kernels
from tandem.model.batch import ForwardBatch
from tandem.model.config import ModelConfig
from tandem.model.quantisation import ParameterKind


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the weight segment and the checkpoint tensors that are stacked into it along dimension 0."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    kind: ParameterKind = ParameterKind.SMALL


class Decoder(Protocol):
    """A decoder-only transformer over weights and KV that it does not own."""

    def hidden_states(self, batch: ForwardBatch, kv_cache: torch.Tensor) -> torch.Tensor:
        """Runs all layers, storing each row's keys and values into its slot.

        `kv_cache` is ``[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]``. Returns the normalised
        hidden states ``[num_tokens, hidden_size]``.
        """
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[num_rows, hidden_size]`` to ``[num_rows, vocab_size]`` in float32."""
        ...


class Family(Protocol):
    """An entry of `tandem.model.registry`."""

    def parameters(self, config: ModelConfig) -> tuple[Parameter, ...]:
        """Every parameter, in the order in which they lie in the weight segment. UnsupportedModelError."""
        ...

    def build(self, config: ModelConfig, weights: Mapping[str, Weight], kernels: Kernels) -> Decoder:
        """The forward pass over `weights`, which are used in place, with `kernels` that can take their dtype.

        Those of kind `SMALL` are plain.
        """
        ...

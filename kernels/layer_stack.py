"""A pre-norm transformer's layers as data: what a kernel needs that runs all of them in one call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kernels.quantised import Weight
from kernels.rotary import RotaryTable


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """`weight` is ``[out_width, in_width]``, contiguous where it is not quantised; `bias` ``[out_width]``."""

    weight: Weight
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. `head_norm` is ``[num_heads + num_kv_heads, head_dim]`` in families that normalise heads."""

    attention_norm: torch.Tensor  # [hidden_size]
    qkv: LinearWeight
    head_norm: torch.Tensor | None
    attention_output: LinearWeight
    mlp_norm: torch.Tensor  # [hidden_size]
    gate_up: LinearWeight
    down: LinearWeight


@dataclass(frozen=True, slots=True)
class LayerStack:
    """All layers and the norm after them."""

    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # [hidden_size]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float

    @property
    def scale(self) -> float:
        """Of attention's scores."""
        return float(self.head_dim**-0.5)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What all layers of a step share; `attention` is a plan of the same kernels."""

    rotary: RotaryTable
    attention: Any
    slot_mapping: torch.Tensor  # [num_tokens] int64
    pause: Callable[[], None] | None = None  # called between layers of a long step; where phases share time it waits


class RunLayers(Protocol):
    """The layers of one stack; one call at a time."""

    def __call__(self, embedded: torch.Tensor, step: StepInputs, kv_cache: torch.Tensor) -> torch.Tensor:
        """``[num_tokens, hidden_size]`` to the normalised hidden states, of the same shape; `embedded` is used up.

        Each row's keys and values are stored into `kv_cache`, ``[num_layers, 2, num_blocks, block_size, num_kv_heads,
        head_dim]``, contiguous.
        """
        ...

"""The same function of other weights.

A file that is quantised already loses nothing when it is quantised in the same way again, which says little of other
models. Here each channel between two matrices is multiplied by a factor of its own on one side and divided by it on
the other, so that the weights lie on no such grid any more and the model computes what it did.
"""

import hashlib
import re

import torch

from tandem.model.config import ModelConfig
from tandem.model.source import ModelSource

LARGEST_LOG2 = 0.25
_LAYER_TENSOR = re.compile(r"(model\.layers\.\d+)\.(?:self_attn\.|mlp\.)?(\w+)\.(weight|bias)")
_NORM_OF = {
    "q_proj": "input_layernorm",
    "k_proj": "input_layernorm",
    "v_proj": "input_layernorm",
    "gate_proj": "post_attention_layernorm",
    "up_proj": "post_attention_layernorm",
}


class OffGridSource:
    """A `ModelSource` over another one of Llama's shape."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.name = f"{source.name}, off grid"
        self.config: ModelConfig = source.config

    def digest(self) -> str:
        """Of the other's."""
        return hashlib.sha256(f"off grid {self._source.digest()}".encode()).hexdigest()

    def tensor(self, hf_name: str) -> torch.Tensor:
        """See `ModelSource`; float32."""
        values = self._source.tensor(hf_name).float()
        match = _LAYER_TENSOR.fullmatch(hf_name)
        return values if match is None else self._scaled(values, *match.groups())

    def _scaled(self, values: torch.Tensor, layer: str, module: str, kind: str) -> torch.Tensor:
        if module in _NORM_OF.values():
            return values / _factors(f"{layer}.{module}", values.shape[0])
        if kind == "weight" and module in _NORM_OF:
            values = values * _factors(f"{layer}.{_NORM_OF[module]}", values.shape[1])
        if module in ("v_proj", "up_proj"):
            factors = _factors(f"{layer}.{module}", values.shape[0])
            return values * (factors if values.dim() == 1 else factors[:, None])
        if kind == "weight" and module == "down_proj":
            return values / _factors(f"{layer}.up_proj", values.shape[1])
        if kind == "weight" and module == "o_proj":
            return values / self._value_factors(layer)
        return values

    def _value_factors(self, layer: str) -> torch.Tensor:
        """Of the channels that attention puts out: each query head has its value head's."""
        config = self.config
        factors = _factors(f"{layer}.v_proj", config.num_kv_heads * config.head_dim).view(config.num_kv_heads, -1)
        return factors.repeat_interleave(config.num_heads // config.num_kv_heads, dim=0).flatten()


def _factors(name: str, count: int) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return torch.exp2((2 * drawn - 1) * LARGEST_LOG2)

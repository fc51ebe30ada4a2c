"""Random weights: each tensor is drawn from a seed that is its name, so any process gets the same."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from tandem.errors import ModelFormatError
from tandem.model.config import ModelConfig
from tandem.model.digest import files_digest
from tandem.model.random_model import read_random_config

STANDARD_DEVIATION = 0.02


class RandomSource:
    """A `ModelSource`."""

    def __init__(self, name: str, config_path: Path) -> None:
        """ModelNotFoundError, ModelFormatError, UnsupportedModelError."""
        self.name = name
        self.config: ModelConfig = read_random_config(config_path)
        self._path = config_path

    def digest(self) -> str:
        """SHA-256 over the config, which says everything about the weights."""
        return files_digest([self._path])

    def tensor(self, hf_name: str) -> torch.Tensor:
        """Norms are 1, everything else is normal with `STANDARD_DEVIATION`; float32. ModelFormatError: no such name."""
        shape = _shape(self.config, hf_name)
        if shape is None:
            raise ModelFormatError(f"{self._path}: no shape is known for tensor {hf_name!r}")
        if "norm" in hf_name:
            return torch.ones(shape)
        seed = int.from_bytes(hashlib.sha256(hf_name.encode()).digest()[:8])
        values = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return torch.from_numpy(values).mul_(STANDARD_DEVIATION)


def _shape(config: ModelConfig, hf_name: str) -> tuple[int, ...] | None:
    """By the name's last module: ``q_proj`` of ``model.layers.0.self_attn.q_proj.weight``; a bias is its rows."""
    *_, module, kind = ("", *hf_name.split("."))
    shape = _weight_shapes(config).get(module)
    return shape[:1] if shape and kind == "bias" else shape


def _weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "embed_tokens": (config.vocab_size, hidden),
        "lm_head": (config.vocab_size, hidden),
        "norm": (hidden,),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "q_proj": (query, hidden),
        "k_proj": (key_value, hidden),
        "v_proj": (key_value, hidden),
        "o_proj": (hidden, query),
        "q_norm": (config.head_dim,),
        "k_norm": (config.head_dim,),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }

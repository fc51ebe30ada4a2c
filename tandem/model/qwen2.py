"""Qwen2 and Qwen2.5: always biases on query, key and value, never on the output projection."""

from tandem.model.config import ModelConfig
from tandem.model.layers import Traits, TransformerFamily


def _traits(_config: ModelConfig) -> Traits:
    return Traits(qkv_bias=True)


FAMILY = TransformerFamily(_traits)

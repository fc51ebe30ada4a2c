"""Qwen3 (dense): query and key heads are normalised; `attention_bias` covers all four projections."""

from tandem.model.config import ModelConfig
from tandem.model.layers import Traits, TransformerFamily


def _traits(config: ModelConfig) -> Traits:
    return Traits(qkv_bias=config.attention_bias, output_bias=config.attention_bias, qk_norm=True)


FAMILY = TransformerFamily(_traits)

"""Llama 2 and 3, and what shares their shape (SmolLM2): `attention_bias` covers all four projections."""

from tandem.model.config import ModelConfig
from tandem.model.layers import Traits, TransformerFamily


def _traits(config: ModelConfig) -> Traits:
    return Traits(qkv_bias=config.attention_bias, output_bias=config.attention_bias)


FAMILY = TransformerFamily(_traits)

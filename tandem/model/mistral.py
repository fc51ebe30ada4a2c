"""Mistral: Llama's shape without biases; `sliding_window` bounds what a row sees."""

from tandem.model.config import ModelConfig
from tandem.model.layers import Traits, TransformerFamily


def _traits(_config: ModelConfig) -> Traits:
    return Traits()


FAMILY = TransformerFamily(_traits)

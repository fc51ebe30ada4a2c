"""What a step must move and compute at least; pure arithmetic over a model's shape, in bfloat16."""

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.model.config import ModelConfig
from tandem.model.family import Parameter
from tandem.model.layers import EMBEDDING
from tandem.model.registry import get_family

ELEMENT_BYTES = 2


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured on the same card, in the same process."""

    copy_gb_per_s: float  # bytes read and bytes written
    matmul_tflop_per_s: float


def decode_floor_ms(config: ModelConfig, batch: int, context: int, rates: Rates) -> float:
    """One step's weights and KV read once, at the rate of a copy."""
    return decode_bytes(config, batch, context) / rates.copy_gb_per_s / 1e6


def decode_bytes(config: ModelConfig, batch: int, context: int) -> int:
    """Weights, but of the embedding only the head's use and the batch's rows; keys and values of `context` tokens."""
    weights = sum(map(_num_elements, _matrices(config)))
    key_values = batch * context * config.num_layers * 2 * config.num_kv_heads * config.head_dim
    return ELEMENT_BYTES * (weights + batch * config.hidden_size + key_values)


def prefill_flop(config: ModelConfig, lengths: Sequence[int]) -> int:
    """Products of whole prompts: weights for each token, the head for each prompt, causal attention."""
    layers = sum(_num_elements(each) for each in _matrices(config) if len(each.shape) > 1)
    head = config.vocab_size * config.hidden_size
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * pairs
    return 2 * (layers - head) * sum(lengths) + 2 * head * len(lengths) + attention


def attention_bytes(config: ModelConfig, batch: int, context: int) -> int:
    """Keys and values of one layer."""
    return ELEMENT_BYTES * batch * context * 2 * config.num_kv_heads * config.head_dim


def _matrices(config: ModelConfig) -> list[Parameter]:
    """Parameters that every step reads whole, the head among them, which may be the embedding."""
    parameters = get_family(config.family).parameters(config)
    return [each for each in parameters if each.name != EMBEDDING or config.tie_word_embeddings]


def _num_elements(parameter: Parameter) -> int:
    count = 1
    for size in parameter.shape:
        count *= size
    return count

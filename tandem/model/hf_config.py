"""A Hugging Face config.json as a `ModelConfig`. No torch here.

Key names: transformers 4 (``rope_theta``, ``rope_scaling``) and 5 (``rope_parameters``).
"""

from tandem.errors import UnsupportedModelError
from tandem.model.config import ModelConfig, RopeScaling
from tandem.model.config_check import check_config
from tandem.model.fields import Fields

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
_MISTRAL_WINDOW = 4096  # what transformers takes when a Mistral config does not say
_UNBUILT_FLAGS = ("attention_bias", "mlp_bias", "use_sliding_window")


def model_config(fields: Fields, generation: Fields) -> ModelConfig:
    """`generation` is generation_config.json, whose end tokens go before the config's.

    ModelFormatError, UnsupportedModelError; both name the file.
    """
    family = _family(fields)
    num_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    rope = _rope(fields)
    config = ModelConfig(
        family=family,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=_head_dim(fields, family, hidden_size, num_heads),
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", fields.number("rope_theta", 10_000.0)),
        rope_scaling=_rope_scaling(rope),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=family == "qwen2",
        sliding_window=_sliding_window(fields, family),
        bos_token_id=fields.optional_integer("bos_token_id"),
        eos_token_ids=_token_ids(generation, "eos_token_id") or _token_ids(fields, "eos_token_id"),
    )
    return check_config(fields.origin, config)


def _family(fields: Fields) -> str:
    family = fields.text("model_type")
    if family not in FAMILIES:
        raise UnsupportedModelError(f"{fields.origin}: model_type {family!r} is not built; {', '.join(FAMILIES)} are")
    unbuilt = [key for key in _UNBUILT_FLAGS if fields.flag(key, False)]
    if unbuilt:
        raise UnsupportedModelError(f"{fields.origin}: {unbuilt[0]} in {family} is not built")
    if fields.text("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(f"{fields.origin}: hidden_act other than silu is not built")
    if fields.has("quantization_config"):
        raise UnsupportedModelError(f"{fields.origin}: quantised safetensors are not built")
    return family


def _head_dim(fields: Fields, family: str, hidden_size: int, num_heads: int) -> int:
    if num_heads < 1:
        raise fields.wrong("num_attention_heads", "above 0")
    # Qwen3's heads are not a share of the hidden size, so its configs must say.
    return fields.integer("head_dim", None if family == "qwen3" else hidden_size // num_heads)


def _sliding_window(fields: Fields, family: str) -> int | None:
    if family != "mistral":
        return None
    return fields.optional_integer("sliding_window") if "sliding_window" in fields.values else _MISTRAL_WINDOW


def _rope(fields: Fields) -> Fields:
    rope = fields.section("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    if fields.number("partial_rotary_factor", rope.number("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModelError(f"{fields.origin}: partial_rotary_factor is not built")
    return rope


def _rope_scaling(rope: Fields) -> RopeScaling | None:
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UnsupportedModelError(f"{rope.origin}: rope scaling {kind!r} is not built; llama3 is")
    return RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=rope.integer("original_max_position_embeddings"),
    )


def _token_ids(fields: Fields, key: str) -> tuple[int, ...]:
    """One id or a list of them."""
    if not fields.has(key):
        return ()
    if isinstance(fields.values[key], list):
        return tuple(fields.integers(key))
    return (fields.integer(key),)

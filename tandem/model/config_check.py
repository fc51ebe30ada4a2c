"""Values of a `ModelConfig` that no model can have, found before anything is computed from them. No torch here."""

from tandem.errors import ModelFormatError
from tandem.model.config import ModelConfig

MAX_LAYERS = 4096
MAX_SIZE = 1 << 24
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)


def check_config(origin: str, config: ModelConfig) -> ModelConfig:
    """Returns `config`. ModelFormatError names the file it came from and the field."""
    _check_range(origin, "num_layers", config.num_layers, MAX_LAYERS)
    for name in _SIZES:
        _check_range(origin, name, getattr(config, name), MAX_SIZE)
    if config.sliding_window is not None:
        _check_range(origin, "sliding_window", config.sliding_window, MAX_SIZE)
    problem = _contradiction(config)
    if problem:
        raise ModelFormatError(f"{origin}: {problem}")
    return config


def _check_range(origin: str, name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ModelFormatError(f"{origin}: {name} is {value}, not between 1 and {most}")


def _contradiction(config: ModelConfig) -> str:
    if config.num_heads % config.num_kv_heads:
        return f"num_heads is {config.num_heads}, not a multiple of num_kv_heads, {config.num_kv_heads}"
    if config.head_dim % 2:
        return f"head_dim is {config.head_dim}, not even"
    if config.rms_norm_eps < 0:
        return f"rms_norm_eps is {config.rms_norm_eps}, below 0"
    if config.rope_theta <= 0:
        return f"rope_theta is {config.rope_theta}, not above 0"
    return _scaling_problem(config) or _token_problem(config)


def _scaling_problem(config: ModelConfig) -> str:
    scaling = config.rope_scaling
    if scaling is None:
        return ""
    if scaling.factor <= 0:
        return f"rope scaling's factor is {scaling.factor}, not above 0"
    if not 1 <= scaling.original_max_position_embeddings <= MAX_SIZE:
        return f"rope scaling's original_max_position_embeddings is not between 1 and {MAX_SIZE}"
    if not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
        return "rope scaling's low_freq_factor is not between 0 and high_freq_factor"
    return ""


def _token_problem(config: ModelConfig) -> str:
    named = [*config.eos_token_ids] + ([] if config.bos_token_id is None else [config.bos_token_id])
    outside = [token_id for token_id in named if not 0 <= token_id < config.vocab_size]
    return f"token id {outside[0]} is not in a vocabulary of {config.vocab_size}" if outside else ""

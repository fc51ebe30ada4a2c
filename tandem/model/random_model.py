"""A model of any configuration with random weights, ``random:<path of a config.json>``. No torch here."""

from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tandem.errors import ModelFormatError
from tandem.model.config import ModelConfig
from tandem.model.fields import read_json, read_optional_json
from tandem.model.hf_config import model_config
from tandem.model.hf_folder import GENERATION_CONFIG, TOKENIZER, HfTokenizer, read_hf_tokenizer
from tandem.model.tokenizer import Tokenizer, byte_alphabet

_BOS, _TURN, _EOS, _PADDING = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
_SPECIAL_TOKENS = (_BOS, _TURN, _EOS, _PADDING)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read_random_config(config_path: Path) -> ModelConfig:
    """ModelNotFoundError, ModelFormatError, UnsupportedModelError; each names the file."""
    return model_config(read_json(config_path), read_optional_json(config_path.parent / GENERATION_CONFIG))


def read_random_tokenizer(config_path: Path, config: ModelConfig) -> HfTokenizer:
    """The tokenizer beside the config, or else one token a byte. ModelFormatError: no room for that."""
    if (config_path.parent / TOKENIZER).exists():
        return read_hf_tokenizer(config_path.parent)
    alphabet = byte_alphabet()
    needed = len(alphabet) + len(_SPECIAL_TOKENS)
    if config.vocab_size < needed:
        raise ModelFormatError(
            f"{config_path}: vocab_size is {config.vocab_size}; without a {TOKENIZER} beside it {needed} are needed"
        )
    vocabulary = {token: token_id for token_id, token in enumerate((*alphabet, *_SPECIAL_TOKENS))}
    return HfTokenizer(Tokenizer(str(config_path), _byte_backend(vocabulary), _BOS, _EOS), _CHAT_TEMPLATE)


def _byte_backend(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS])
    return backend

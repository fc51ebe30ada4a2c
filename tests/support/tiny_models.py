"""Small random models on disk, written by transformers: the independent side of every comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
NUM_TOKENS = 384
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CORPUS = (
    "The quick brown fox jumps over the lazy dog while the other dogs sleep in the sun.",
    "Numbers such as 1, 22, 333 and 4444 are split; naïve café déjà vu, 東京 and 🙂 are bytes.",
    "def add(left, right):\n    return left + right\n",
)
_CONFIGS = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "mistral": transformers.MistralConfig,
}
_SHAPE: Mapping[str, Any] = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large enough that logits differ by token
    "bos_token_id": 0,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of `NUM_TOKENS` tokens at most; ids 0, 1 and 2 are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return tokenizer


def tiny_config(family: str, **overrides: Any) -> transformers.PretrainedConfig:
    """The family's configuration in transformers, two layers of 64."""
    return _CONFIGS[family](**{**_SHAPE, **overrides})


def tiny_model(family: str, **overrides: Any) -> transformers.PreTrainedModel:
    """A model of `tiny_config` with weights drawn from a fixed seed, biases and norms included."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(family, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # transformers makes norms 1 and biases 0, which would hide an exchange
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save_tiny_model(directory: Path, family: str, **overrides: Any) -> Path:
    """Writes a `tiny_model` and its tokenizer as a Hugging Face folder."""
    tiny_model(family, **overrides).save_pretrained(directory)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(), bos_token=_SPECIAL_TOKENS[0], eos_token=_SPECIAL_TOKENS[2]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory

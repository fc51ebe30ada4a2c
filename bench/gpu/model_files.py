"""Random models as services name them: drawn when they are loaded, or written to files."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers

from tandem.config.settings import default_cache_dir
from tandem.model.config import ModelConfig
from tandem.model.hf_folder import CONFIG, TOKENIZER, WEIGHTS
from tandem.model.location import RANDOM_PREFIX
from tandem.model.registry import get_family
from tandem.model.source import open_model
from tandem.model.tokenizer import byte_alphabet

NUM_THREADS = 8  # that draw numbers


def random_model(folder: Path, config: ModelConfig) -> str:
    """Drawn by whoever loads it."""
    path = folder / CONFIG
    fields = {
        "model_type": config.family,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
    }
    path.write_text(json.dumps(fields))
    return f"{RANDOM_PREFIX}{path}"


def written_model(folder: Path, config: ModelConfig) -> Path:
    """As a Hugging Face folder: the same numbers in bfloat16, and one token a byte."""
    folder.mkdir()
    source = open_model(random_model(folder, config), default_cache_dir())
    names = [name for parameter in get_family(config.family).parameters(config) for name in parameter.sources]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        tensors = dict(zip(names, pool.map(lambda name: source.tensor(name).to(torch.bfloat16), names), strict=True))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    _byte_tokenizer().save(str(folder / TOKENIZER))
    return folder


def forget_pages(path: Path) -> None:
    """The kernel has the file on its disk alone, as after a start of the machine: whoever reads it next waits."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _byte_tokenizer() -> tokenizers.Tokenizer:
    vocabulary = {token: token_id for token_id, token in enumerate(byte_alphabet())}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend

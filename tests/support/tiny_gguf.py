"""A tiny random model written as GGUF through the `gguf` package's own writer, the way llama.cpp's converter does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from tests.support.tiny_models import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

_SOURCE_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_tiny_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    pre: str = "smollm",
    quantisation: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    replaced: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, np.ndarray] | None = None,
    **overrides: Any,
) -> transformers.PreTrainedModel:
    """Writes the file and returns the model whose weights it holds.

    `replaced` gives metadata entries by their full key; None leaves an entry out.
    """
    model = tiny_model(architecture, **overrides)
    writer = gguf.GGUFWriter(path, architecture)
    entries = {**_hyperparameters(model.config, architecture), **_vocabulary(pre), **(replaced or {})}
    for key, value in entries.items():
        if value is not None:
            _add(writer, key, value)
    for name, values in _tensors(model, architecture).items():
        kind = quantisation if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def _hyperparameters(config: Any, architecture: str) -> dict[str, Any]:
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "rope.dimension_count": config.head_dim,
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}


def _vocabulary(pre: str) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    tokens = [tokenizer.id_to_token(token_id) for token_id in range(tokenizer.get_vocab_size())]
    control = set(tokenizer.get_added_tokens_decoder())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token_id in control else 1 for token_id in range(len(tokens))],
        "tokenizer.ggml.merges": _merges(tokenizer.to_str()),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _merges(tokenizer_json: str) -> list[str]:
    return [" ".join(pair) for pair in json.loads(tokenizer_json)["model"]["merges"]]


def _tensors(model: transformers.PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    tensors = {}
    for name, values in model.state_dict().items():
        head_counts = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
        heads = next((count for part, count in head_counts.items() if part in name), None)
        if architecture == "llama" and heads:
            tensors[_gguf_name(name)] = _permuted(values, heads).numpy()
        else:
            tensors[_gguf_name(name)] = values.numpy()
    return tensors


def _permuted(values: torch.Tensor, num_heads: int) -> torch.Tensor:
    """llama.cpp's order: the halves of each head interleaved."""
    halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape).contiguous()


def _gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{_SOURCE_NAMES[stem]}.{kind}"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{_SOURCE_NAMES[module]}.{kind}"

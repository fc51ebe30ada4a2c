"""What a GGUF file says of its model: hyperparameters and names. No torch here.

Key names: the GGUF specification and llama.cpp's converter, which writes them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGMLQuantizationType

from tandem.errors import ModelFormatError, UnsupportedModelError
from tandem.model.config import ModelConfig
from tandem.model.config_check import check_config
from tandem.model.fields import Fields
from tandem.model.gguf_header import GgufHeader, GgufTensor, read_header
from tandem.model.gguf_rope import read_rope_scaling

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_EOS_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NO_WEIGHTS = ("rope_freqs.weight",)  # read as configuration
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_EMBEDDING = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A checked header, its model's configuration, and its tensors by their Hugging Face names."""

    header: GgufHeader
    config: ModelConfig
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """ModelNotFoundError, ModelFormatError, UnsupportedModelError; each names the file."""
    header = read_header(path)
    fields = Fields(str(path), header.metadata)
    architecture = _architecture(fields)
    tensors = {_hf_name(header, name): tensor for name, tensor in header.tensors.items() if name not in _NO_WEIGHTS}
    _check_shapes(header)
    config = check_config(str(path), _config(fields, architecture, header))
    _check_layers(header, config)
    return GgufFile(header, config, tensors)


def _architecture(fields: Fields) -> str:
    architecture = fields.text("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(f"{fields.origin}: architecture {architecture!r} is not built; {known} are")
    if fields.integer("split.count", 1) > 1:
        raise UnsupportedModelError(f"{fields.origin}: a GGUF split over files is not built; merge it first")
    if fields.integer(f"{architecture}.expert_count", 0) > 0:
        raise UnsupportedModelError(f"{fields.origin}: mixtures of experts are not built")
    return architecture


def _config(fields: Fields, architecture: str, header: GgufHeader) -> ModelConfig:
    def integer(key: str, default: int | None = None) -> int:
        return fields.integer(f"{architecture}.{key}", default)

    def number(key: str, default: float | None = None) -> float:
        return fields.number(f"{architecture}.{key}", default)

    hidden_size, num_heads = integer("embedding_length"), integer("attention.head_count")
    head_dim = _head_dim(fields, architecture, hidden_size, num_heads)
    rope_theta = number("rope.freq_base", 10_000.0)
    sliding_window = fields.optional_integer(f"{architecture}.attention.sliding_window")
    return ModelConfig(
        family="mistral" if architecture == "llama" and sliding_window else architecture,
        hidden_size=hidden_size,
        intermediate_size=integer("feed_forward_length"),
        num_layers=integer("block_count"),
        num_heads=num_heads,
        num_kv_heads=integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(header, hidden_size),
        max_position_embeddings=integer("context_length"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_theta=rope_theta,
        rope_scaling=read_rope_scaling(fields, architecture, header, rope_theta, head_dim),
        tie_word_embeddings="output.weight" not in header.tensors,
        attention_bias=_attention_bias(header, architecture),
        sliding_window=_window(fields, architecture, sliding_window),
        bos_token_id=fields.optional_integer("tokenizer.ggml.bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(fields.integer(key) for key in _EOS_KEYS if fields.has(key))),
    )


def _head_dim(fields: Fields, architecture: str, hidden_size: int, num_heads: int) -> int:
    if num_heads < 1:
        raise fields.wrong(f"{architecture}.attention.head_count", "above 0")
    head_dim = fields.integer(f"{architecture}.attention.key_length", hidden_size // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(f"{architecture}.{key}", head_dim) != head_dim:
            raise UnsupportedModelError(f"{fields.origin}: {architecture}.{key} differs from the head's {head_dim}")
    return head_dim


def _vocab_size(header: GgufHeader, hidden_size: int) -> int:
    embedding = header.tensors.get(_EMBEDDING)
    if embedding is None:
        raise ModelFormatError(f"{header.path}: tensor {_EMBEDDING!r} is missing")
    if len(embedding.shape) != 2 or embedding.shape[1] != hidden_size:
        raise ModelFormatError(f"{header.path}: {_EMBEDDING!r} is {embedding.shape}, not of width {hidden_size}")
    return embedding.shape[0]


def _attention_bias(header: GgufHeader, architecture: str) -> bool:
    if "blk.0.attn_output.bias" in header.tensors:
        raise UnsupportedModelError(f"{header.path}: a bias on the attention's output projection is not built")
    return architecture == "qwen2" or "blk.0.attn_q.bias" in header.tensors


def _window(fields: Fields, architecture: str, sliding_window: int | None) -> int | None:
    if sliding_window and architecture != "llama":
        raise UnsupportedModelError(f"{fields.origin}: sliding windows in {architecture} are not built")
    return sliding_window or None


def _hf_name(header: GgufHeader, name: str) -> str:
    layer = _LAYER_TENSOR.fullmatch(name)
    if layer and layer[2] in _LAYER_NAMES:
        return f"model.layers.{int(layer[1])}.{_LAYER_NAMES[layer[2]]}.{layer[3]}"
    if name not in _TOP_NAMES:
        raise UnsupportedModelError(f"{header.path}: tensor {name!r} belongs to nothing that is built")
    return _TOP_NAMES[name]


def _check_layers(header: GgufHeader, config: ModelConfig) -> None:
    numbers = {int(match[1]) for match in map(_LAYER_TENSOR.fullmatch, header.tensors) if match}
    if numbers != set(range(config.num_layers)):
        raise ModelFormatError(f"{header.path}: tensors of {len(numbers)} layers, block_count is {config.num_layers}")


def _check_shapes(header: GgufHeader) -> None:
    for tensor in header.tensors.values():
        if len(tensor.shape) > 2:
            raise ModelFormatError(f"{header.path}: tensor {tensor.name!r} has {len(tensor.shape)} dimensions")
        if len(tensor.shape) == 1 and tensor.kind is not GGMLQuantizationType.F32:
            raise ModelFormatError(f"{header.path}: vector {tensor.name!r} is {tensor.kind.name}, not F32")

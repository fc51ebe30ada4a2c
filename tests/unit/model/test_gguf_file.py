"""GGUF files against the `gguf` package's own reader and transformers' own import."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from tandem.errors import UnsupportedModelError
from tandem.model.gguf_file import read_gguf
from tandem.model.gguf_header import read_header
from tandem.model.source import open_model
from tests.support.tiny_gguf import write_tiny_gguf

ARCHITECTURES = ("llama", "qwen2", "qwen3")


def test_header_of_the_default_model_equals_the_packages_reader(default_model_path: Path) -> None:
    header = read_header(default_model_path)
    reader = gguf.GGUFReader(default_model_path)
    assert dict(header.metadata) == {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
    }
    ours = [(t.name, t.kind, list(t.shape), t.offset_bytes, t.num_bytes) for t in header.tensors.values()]
    assert ours == [(t.name, t.tensor_type, t.shape.tolist()[::-1], t.data_offset, t.n_bytes) for t in reader.tensors]


def test_every_tensor_of_the_default_model_equals_transformers_import(
    default_model_path: Path, default_reference_model: transformers.PreTrainedModel
) -> None:
    expected = default_reference_model
    source = open_model("default", default_model_path.parent)
    names = [name for name in expected.state_dict() if name != "lm_head.weight"]
    assert len(names) == 272
    for name in names:
        assert torch.equal(source.tensor(name), expected.state_dict()[name]), name
    assert source.config.tie_word_embeddings
    assert expected.get_input_embeddings().weight.data_ptr() == expected.lm_head.weight.data_ptr()
    assert source.config.head_dim == expected.config.head_dim == 64
    assert source.config.rope_theta == expected.config.rope_parameters["rope_theta"]
    assert source.config.rms_norm_eps == pytest.approx(expected.config.rms_norm_eps)
    assert source.config.eos_token_ids == (expected.config.eos_token_id,)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_come_back_as_transformers_had_them(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    model = write_tiny_gguf(path, architecture)
    source = open_model(str(path), tmp_path)
    for name, values in model.state_dict().items():
        assert torch.equal(source.tensor(name), values), name
    assert source.config.family == architecture
    assert source.config.attention_bias == (architecture == "qwen2")
    assert (source.config.num_layers, source.config.num_heads, source.config.num_kv_heads) == (2, 4, 2)
    assert (source.config.vocab_size, source.config.tie_word_embeddings) == (384, False)


@pytest.mark.parametrize(
    "kind", [gguf.GGMLQuantizationType[name] for name in ("F16", "BF16", "Q4_0", "Q5_1", "Q8_0")], ids=str
)
def test_quantised_tensors_equal_the_packages_dequantisation(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    model = write_tiny_gguf(path, "qwen2", quantisation=kind)
    name = "model.layers.1.mlp.down_proj.weight"
    expected = gguf.dequantize(gguf.quantize(model.state_dict()[name].numpy(), kind), kind)
    assert torch.equal(open_model(str(path), tmp_path).tensor(name), torch.from_numpy(expected))


def test_a_sliding_window_makes_a_llama_file_a_mistral(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", replaced={"llama.attention.sliding_window": 128})
    config = read_gguf(tmp_path / "tiny.gguf").config
    assert (config.family, config.sliding_window) == ("mistral", 128)


def test_all_end_tokens_are_found_once(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.eom_token_id": 1}
    write_tiny_gguf(tmp_path / "tiny.gguf", replaced=keys)
    assert read_gguf(tmp_path / "tiny.gguf").config.eos_token_ids == (2, 1)


def test_llama3_rope_scaling_is_recovered_from_the_divisors(tmp_path: Path) -> None:
    write_tiny_gguf(
        tmp_path / "tiny.gguf",
        replaced={"llama.rope.freq_base": 500_000.0},
        extra_tensors={"rope_freqs.weight": _transformers_divisors(factor=8.0)},
    )
    scaling = read_gguf(tmp_path / "tiny.gguf").config.rope_scaling
    assert scaling is not None
    assert scaling.factor == pytest.approx(8.0)
    assert (scaling.low_freq_factor, scaling.high_freq_factor) == (1.0, 4.0)
    assert scaling.original_max_position_embeddings == 8192


def test_other_rope_divisors_are_refused(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", extra_tensors={"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)})
    with pytest.raises(UnsupportedModelError, match=r"tiny\.gguf.*rope_freqs"):
        read_gguf(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("entries", "scales"),
    [
        ({"scaling.factor": 4.0}, True),
        ({"scale_linear": 4.0}, True),
        ({"scaling.factor": 1.0, "scale_linear": 4.0}, False),
        ({"scaling.factor": 0.0}, False),
        ({"scaling.type": "none", "scaling.factor": 4.0}, False),
    ],
    ids=str,
)
def test_a_scaling_without_a_type_is_linear(entries: dict[str, Any], scales: bool, tmp_path: Path) -> None:
    """As llama.cpp reads it."""
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, replaced={f"llama.rope.{key}": value for key, value in entries.items()})
    if scales:
        with pytest.raises(UnsupportedModelError, match=r"tiny\.gguf: rope scaling 'linear' is not built"):
            read_gguf(path)
    else:
        assert read_gguf(path).config.rope_scaling is None


@pytest.mark.parametrize("name", ["ffn_up.bias", "ffn_down.bias", "attn_norm.bias", "attn_q_norm.weight"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_tensor_that_the_family_does_not_have_is_refused(name: str, layer: int, tmp_path: Path) -> None:
    path, tensor = tmp_path / "tiny.gguf", f"blk.{layer}.{name}"
    write_tiny_gguf(path, extra_tensors={tensor: np.ones(16, dtype=np.float32)})
    with pytest.raises(UnsupportedModelError, match=rf"tiny\.gguf: tensor '{tensor}' in llama is not built"):
        open_model(str(path), tmp_path)


def test_biases_of_a_file_with_a_sliding_window_are_refused(tmp_path: Path) -> None:
    write_tiny_gguf(
        tmp_path / "tiny.gguf",
        replaced={"llama.attention.sliding_window": 128},
        extra_tensors={"blk.0.attn_q.bias": np.ones(64, dtype=np.float32)},
    )
    with pytest.raises(UnsupportedModelError, match=r"'blk\.0\.attn_q\.bias' in mistral is not built"):
        open_model(str(tmp_path / "tiny.gguf"), tmp_path)


def _transformers_divisors(factor: float) -> np.ndarray:
    parameters = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=parameters)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500_000.0 ** (-torch.arange(0, 16, 2) / 16)
    return (plain / scaled).numpy().astype(np.float32)

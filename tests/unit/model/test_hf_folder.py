"""Hugging Face folders as transformers writes them, and as accidents leave them."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tandem.errors import ModelError, ModelFormatError, ModelNotFoundError, UnsupportedModelError
from tandem.model.config import ModelConfig, RopeScaling
from tandem.model.hf_folder import read_hf_config, read_hf_tokenizer
from tandem.model.metadata import read_metadata
from tandem.model.source import open_model
from tests.support.tiny_models import FAMILIES, save_tiny_model, tiny_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture
def folder(tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Llama's folder to spoil."""
    return Path(shutil.copytree(tiny_model_dir("llama"), tmp_path / "spoiled"))


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def _config_with(folder: Path, changes: Mapping[str, Any]) -> ModelConfig:
    _edit(folder / "config.json", changes)
    return read_hf_config(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_and_configuration_come_back_equal(family: str, tiny_model_dir: Callable[[str], Path]) -> None:
    model = tiny_model(family)
    source = open_model(str(tiny_model_dir(family)), Path("unused"))
    for name, values in model.state_dict().items():
        assert torch.equal(source.tensor(name), values), name
    config, theirs = source.config, model.config
    assert (config.family, config.head_dim, config.num_kv_heads) == (family, theirs.head_dim, 2)
    assert (config.rope_theta, config.rms_norm_eps) == (theirs.rope_parameters["rope_theta"], theirs.rms_norm_eps)
    assert config.attention_bias == (family == "qwen2")
    assert config.sliding_window == (4096 if family == "mistral" else None)
    assert (config.bos_token_id, config.eos_token_ids) == (0, (2,))


def test_weights_over_several_files_are_found_through_the_index(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    source = open_model(str(tmp_path), tmp_path)
    for name, values in model.state_dict().items():
        assert torch.equal(source.tensor(name), values), name


def test_tied_and_bfloat16(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    source = open_model(str(tmp_path), tmp_path)
    assert source.config.tie_word_embeddings
    embedding = source.tensor("model.embed_tokens.weight")
    assert embedding.dtype == torch.bfloat16
    assert torch.equal(embedding, model.lm_head.weight)
    with pytest.raises(ModelFormatError, match=r"'lm_head\.weight' is missing"):
        source.tensor("lm_head.weight")


def test_the_digest_follows_contents_only(folder: Path, tmp_path: Path) -> None:
    digest = open_model(str(folder), tmp_path).digest()
    assert open_model(str(shutil.copytree(folder, tmp_path / "copy")), tmp_path).digest() == digest
    tensors = {name: tensor.clone() for name, tensor in tiny_model("llama").state_dict().items()}
    tensors["model.norm.weight"][3] += 0.5
    save_file(tensors, folder / "model.safetensors")
    assert open_model(str(folder), tmp_path).digest() != digest


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"rope_parameters": ..., "rope_theta": 5e5}, "rope_theta", 5e5),
        ({"rope_parameters": None, "rope_theta": ...}, "rope_theta", 1e4),
        ({"rope_parameters": ..., "rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE}, "rope_theta", 5e5),
        (
            {"rope_parameters": ..., "rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE},
            "rope_scaling",
            RopeScaling(32.0, 1.0, 4.0, 8192),
        ),
        ({"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 7e5}}, "rope_scaling", RopeScaling(32.0, 1.0, 4.0, 8192)),
        ({"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 7e5}}, "rope_theta", 7e5),
        ({"head_dim": ...}, "head_dim", 16),
        ({"num_key_value_heads": ...}, "num_kv_heads", 4),
        ({"model_type": "mistral", "sliding_window": 77}, "sliding_window", 77),
        ({"model_type": "mistral", "sliding_window": None}, "sliding_window", None),
        ({"model_type": "mistral"}, "sliding_window", 4096),
        ({"model_type": "qwen2", "sliding_window": 77, "use_sliding_window": False}, "sliding_window", None),
        ({"model_type": "qwen2"}, "attention_bias", True),
    ],
)  # fmt: skip
def test_configuration(folder: Path, changes: dict[str, Any], field: str, value: object) -> None:
    assert getattr(_config_with(folder, changes), field) == value


def test_llama3_scaling_as_transformers_saves_it(tmp_path: Path) -> None:
    parameters = {**LLAMA3_ROPE, "rope_theta": 5e5}
    save_tiny_model(tmp_path, "llama", rope_parameters=parameters, max_position_embeddings=16384)
    config = read_hf_config(tmp_path)
    assert (config.rope_scaling, config.rope_theta) == (RopeScaling(32.0, 1.0, 4.0, 8192), 5e5)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [({"eos_token_id": [2, 1]}, (2, 1)), ({"eos_token_id": 1}, (1,)), ({"eos_token_id": ...}, (2,)), (None, (2,))],
)
def test_end_tokens(folder: Path, generation: dict[str, Any] | None, expected: tuple[int, ...]) -> None:
    path = folder / "generation_config.json"
    if generation is None:
        path.unlink()
    else:
        _edit(path, generation)
    assert read_hf_config(folder).eos_token_ids == expected


REFUSED: list[tuple[dict[str, Any], type[ModelError], str]] = [
    ({"model_type": "gemma3"}, UnsupportedModelError, "'gemma3' is not built"),
    ({"model_type": 3}, ModelFormatError, "model_type is 3, not a string"),
    ({"hidden_size": ...}, ModelFormatError, "hidden_size is missing"),
    ({"hidden_size": "64"}, ModelFormatError, "hidden_size is '64', not an integer"),
    ({"hidden_size": 64.5}, ModelFormatError, "hidden_size"),
    ({"num_hidden_layers": 1 << 40}, ModelFormatError, "num_layers"),
    ({"num_attention_heads": 0}, ModelFormatError, "num_attention_heads"),
    ({"num_key_value_heads": 3}, ModelFormatError, "num_kv_heads"),
    ({"head_dim": 15}, ModelFormatError, "head_dim is 15, not even"),
    ({"rms_norm_eps": float("nan")}, ModelFormatError, "rms_norm_eps"),
    ({"rms_norm_eps": 10**400}, ModelFormatError, "rms_norm_eps"),
    ({"rms_norm_eps": -1e-5}, ModelFormatError, "rms_norm_eps"),
    ({"sliding_window": 0, "model_type": "mistral"}, ModelFormatError, "sliding_window"),
    ({"tie_word_embeddings": "yes"}, ModelFormatError, "tie_word_embeddings"),
    ({"eos_token_id": 384}, ModelFormatError, "token id"),
    ({"rope_parameters": [1]}, ModelFormatError, "rope_parameters"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, UnsupportedModelError, "'yarn' is not built"),
    ({"rope_parameters": ..., "rope_scaling": {"type": "linear"}}, UnsupportedModelError, "'linear'"),
    ({"rope_parameters": {"rope_type": "llama3"}}, ModelFormatError, "factor is missing"),
    ({"rope_parameters": {**LLAMA3_ROPE, "factor": 0}}, ModelFormatError, "factor"),
    (
        {"rope_parameters": {**LLAMA3_ROPE, "original_max_position_embeddings": 0}},
        ModelFormatError,
        "original_max_position_embeddings",
    ),
    ({"rope_parameters": {**LLAMA3_ROPE, "high_freq_factor": 1.0}}, ModelFormatError, "high_freq_factor"),
    ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "partial_rotary_factor"),
    ({"attention_bias": True}, UnsupportedModelError, "attention_bias"),
    ({"mlp_bias": True}, UnsupportedModelError, "mlp_bias"),
    ({"model_type": "qwen2", "use_sliding_window": True}, UnsupportedModelError, "use_sliding_window"),
    ({"model_type": "qwen3", "head_dim": ...}, ModelFormatError, "head_dim is missing"),
    ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act"),
    ({"quantization_config": {"quant_method": "fp8"}}, UnsupportedModelError, "quantised"),
]


@pytest.mark.parametrize(("changes", "error", "problem"), REFUSED, ids=lambda part: str(part)[:40])
def test_refused_configurations(folder: Path, changes: dict[str, Any], error: type[ModelError], problem: str) -> None:
    generation = folder / "generation_config.json"
    generation.unlink()
    _edit(folder / "config.json", changes)
    for read in (read_metadata, open_model):
        with pytest.raises(error, match=problem) as caught:
            read(str(folder), folder)
        assert "config.json" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelNotFoundError, match=name.replace(".", r"\.")):
        _read_all(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_a_truncated_file_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for length in (0, 1, 7, 9, len(content) // 2, len(content) - 2):
        (folder / name).write_bytes(content[:length])
        with pytest.raises(ModelFormatError, match=name.replace(".", r"\.")):
            _read_all(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_json_of_another_kind_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelFormatError, match=name.replace(".", r"\.")):
        _read_all(folder)


@pytest.mark.parametrize("weight_map", [{}, {"a": "../elsewhere.safetensors"}, {"a": 1}, {"a": ["b"]}, "m.safetensors"])
def test_a_bad_index_is_named(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFormatError, match=r"index\.json"):
        open_model(str(folder), folder)


def test_a_file_that_the_index_names_and_nobody_has(folder: Path) -> None:
    for name in ("model-00001-of-00002.safetensors", "x" * 5000):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ModelNotFoundError, match=name):
            open_model(str(folder), folder)


def test_integer_weights_are_refused(folder: Path) -> None:
    save_file({"model.norm.weight": torch.ones(4, dtype=torch.int32)}, folder / "model.safetensors")
    with pytest.raises(ModelFormatError, match="int32"):
        open_model(str(folder), folder).tensor("model.norm.weight")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tools", "template": "t"}], None),
        (None, None),
    ],
)
def test_chat_templates_in_the_tokenizer_config(folder: Path, template: object, expected: str | None) -> None:
    (folder / "chat_template.jinja").unlink()
    _edit(folder / "tokenizer_config.json", {"chat_template": template})
    assert read_hf_tokenizer(folder).chat_template == expected


def test_a_token_written_as_an_object(folder: Path) -> None:
    _edit(folder / "tokenizer_config.json", {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": None})
    tokenizer = read_hf_tokenizer(folder).tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", None)


def test_transformers_reads_the_fixture(tiny_model_dir: Callable[[str], Path]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir("qwen3"))
    assert torch.equal(model.lm_head.weight, tiny_model("qwen3").lm_head.weight)


def _read_all(folder: Path) -> None:
    read_metadata(str(folder), folder)
    open_model(str(folder), folder).tensor("model.norm.weight")

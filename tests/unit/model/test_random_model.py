"""Random weights and the byte tokenizer."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tandem.errors import ModelFormatError, ModelNotFoundError
from tandem.model.metadata import read_metadata
from tandem.model.source import ModelSource, open_model
from tests.support.tiny_models import FAMILIES, tiny_config, tiny_model


def _write_config(folder: Path, family: str = "llama", **overrides: object) -> str:
    tiny_config(family, **overrides).save_pretrained(folder)
    return f"random:{folder / 'config.json'}"


def _open(folder: Path, family: str = "llama") -> ModelSource:
    return open_model(_write_config(folder, family), folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_those_of_the_family_in_transformers(family: str, tmp_path: Path) -> None:
    source = _open(tmp_path, family)
    for name, values in tiny_model(family).state_dict().items():
        assert source.tensor(name).shape == values.shape, name


def test_weights_are_small_normal_and_norms_one(tmp_path: Path) -> None:
    source = _open(tmp_path)
    values = source.tensor("model.embed_tokens.weight")
    assert values.dtype == torch.float32
    assert abs(values.mean().item()) < 1e-3
    assert values.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(source.tensor("model.layers.1.input_layernorm.weight"), torch.ones(64))


def test_weights_differ_by_name_and_are_equal_in_every_process(tmp_path: Path) -> None:
    source = _open(tmp_path)
    first, second = (source.tensor(f"model.layers.{layer}.mlp.up_proj.weight") for layer in (0, 1))
    assert not torch.equal(first, second)
    program = (
        "import sys; from pathlib import Path; from tandem.model.source import open_model; "
        "print(open_model(sys.argv[1], Path()).tensor('model.layers.1.mlp.up_proj.weight').double().sum().item())"
    )
    command = [sys.executable, "-c", program, f"random:{tmp_path / 'config.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert float(done.stdout) == second.double().sum().item()


def test_the_digest_is_the_configs(tmp_path: Path) -> None:
    first = _open(tmp_path / "a").digest()
    assert _open(tmp_path / "b").digest() == first
    assert _open(tmp_path / "c", "qwen3").digest() != first


def test_a_name_that_no_family_has(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"experts\.gate"):
        _open(tmp_path).tensor("model.layers.0.experts.gate")


def test_a_byte_is_a_token_where_no_tokenizer_is(tmp_path: Path) -> None:
    metadata = read_metadata(_write_config(tmp_path / "bytes"), tmp_path)
    text = "héllo 🙂\n"
    ids = metadata.tokenizer.encode(text)
    assert ids == list(text.encode())
    assert metadata.tokenizer.decode(ids) == text
    assert metadata.tokenizer.encode("<|im_end|>") == [258]
    assert metadata.name == "random-bytes"
    assert metadata.chat_template is not None


def test_the_tokenizer_beside_the_config_is_used(tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_model_dir("llama")
    beside = read_metadata(f"random:{folder / 'config.json'}", tmp_path)
    assert beside.tokenizer.encode("The quick") == read_metadata(str(folder), tmp_path).tokenizer.encode("The quick")


def test_a_vocabulary_too_small_for_bytes(tmp_path: Path) -> None:
    model = _write_config(tmp_path, vocab_size=259)
    with pytest.raises(ModelFormatError, match=r"config\.json: vocab_size is 259"):
        read_metadata(model, tmp_path)
    assert open_model(model, tmp_path).tensor("lm_head.weight").shape == (259, 64)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    for read in (read_metadata, open_model):
        with pytest.raises(ModelNotFoundError, match=r"nowhere\.json"):
            read(f"random:{tmp_path / 'nowhere.json'}", tmp_path)


def test_a_config_that_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelFormatError, match=r"config\.json: \w+ is missing"):
        open_model(f"random:{tmp_path / 'config.json'}", tmp_path)

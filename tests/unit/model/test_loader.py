"""From a model's files into the weight segment."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from tandem.errors import ModelFormatError
from tandem.model.config import WeightManifest
from tandem.model.family import Parameter
from tandem.model.manifest import build_manifest
from tandem.model.metadata import read_metadata
from tandem.model.source import fill, open_model
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.tiny_models import tiny_model

ATTENTION = "model.layers.0.self_attn"
QKV = tuple(f"{ATTENTION}.{name}_proj.weight" for name in "qkv")
PACKED = Parameter("layers.0.qkv", (64 + 32 + 32, 64), QKV)
NORM = Parameter("norm", (64,), ("model.norm.weight",))
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def _segment(parameters: Sequence[Parameter], dtype: str) -> tuple[WeightManifest, Mapping[str, torch.Tensor]]:
    manifest = build_manifest(parameters, dtype)
    memory = torch.full((manifest.total_bytes,), 0x55, dtype=torch.uint8)
    weights = {}
    for name, place in manifest.tensors.items():
        num_bytes = torch.Size(place.shape).numel() * DTYPES[dtype].itemsize
        raw = memory[place.offset_bytes : place.offset_bytes + num_bytes]
        weights[name] = raw.view(DTYPES[dtype]).view(place.shape)
    return manifest, weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_packed_parameters_are_stacked_and_cast(
    form: str, dtype: str, tiny_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tiny_model_dir("llama")
    if form == "gguf":
        path = tmp_path / "tiny.gguf"
        write_tiny_gguf(path)
    manifest, weights = _segment([PACKED, NORM], dtype)
    fill(open_model(str(path), tmp_path), [PACKED, NORM], manifest, weights)
    expected = tiny_model("llama").state_dict()
    assert torch.equal(weights[PACKED.name], torch.cat([expected[name] for name in QKV]).to(DTYPES[dtype]))
    assert torch.equal(weights["norm"], expected["model.norm.weight"].to(DTYPES[dtype]))


@pytest.mark.parametrize(
    "parameter",
    [
        Parameter("narrow", (64, 63), QKV[:1]),
        Parameter("few rows", (63, 64), QKV[:1]),
        Parameter("many rows", (65, 64), QKV[:1]),
        Parameter("flat", (64,), QKV[:1]),
        Parameter("deep", (64, 64), ("model.norm.weight",)),
        Parameter("no such", (64, 64), ("model.layers.9.mlp.up_proj.weight",)),
    ],
    ids=lambda parameter: parameter.name,
)
def test_what_does_not_fit_is_named(parameter: Parameter, tiny_model_dir: Callable[[str], Path]) -> None:
    folder = tiny_model_dir("llama")
    manifest, weights = _segment([parameter], "float32")
    with pytest.raises(ModelFormatError, match=parameter.sources[0].replace(".", r"\.")):
        fill(open_model(str(folder), folder), [parameter], manifest, weights)


def test_a_gguf_and_a_folder_of_one_model_describe_it_alike(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    ours = read_metadata(str(tmp_path / "tiny.gguf"), tmp_path)
    theirs = read_metadata(str(tiny_model_dir("llama")), tmp_path)
    assert ours.name == "tiny"
    assert ours.config.rms_norm_eps == pytest.approx(theirs.config.rms_norm_eps)
    differing = {
        name
        for name in ("hidden_size", "num_layers", "head_dim", "vocab_size", "rope_theta", "eos_token_ids", "family")
        if getattr(ours.config, name) != getattr(theirs.config, name)
    }
    assert not differing
    assert ours.chat_template == theirs.chat_template


def test_the_default_models_digest_and_name_are_steady(default_model_path: Path) -> None:
    first, second = (open_model("default", default_model_path.parent) for _ in range(2))
    assert first.digest() == second.digest()
    assert first.name == "smollm2-135m-instruct" == read_metadata("default", default_model_path.parent).name
    assert open_model(str(default_model_path), Path("unused")).digest() == first.digest()


def test_metadata_needs_no_torch(default_model_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tandem.model.metadata import read_metadata; "
        "read_metadata('default', Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(default_model_path.parent)]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[3]).returncode == 0

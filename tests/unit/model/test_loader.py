"""From a model's files into the weight segment."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.quantised import QuantisedWeight, Weight, WeightFormat, quantise
from tandem.device.cpu.memory import MemfdExporter, MemfdImporter
from tandem.errors import ModelFormatError
from tandem.model.config import WeightManifest
from tandem.model.family import Parameter
from tandem.model.manifest import build_manifest
from tandem.model.metadata import read_metadata
from tandem.model.quantisation import ParameterKind
from tandem.model.source import ModelSource, fill, open_model
from tandem.model.views import weight_views
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


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_packed_parameters_are_quantised_as_one(quantization: str, tiny_model_dir: Callable[[str], Path]) -> None:
    folder = tiny_model_dir("llama")
    parameters = [replace(PACKED, kind=ParameterKind.LINEAR), NORM]
    weights = load_weights(open_model(str(folder), folder), parameters, quantization)
    expected = tiny_model("llama").state_dict()
    wanted = quantise(torch.cat([expected[name] for name in QKV]), WeightFormat(quantization))
    packed = weights[PACKED.name]
    assert isinstance(packed, QuantisedWeight)
    assert packed.shape == PACKED.shape
    assert torch.equal(packed.digits, wanted.digits)
    assert torch.equal(packed.scales, wanted.scales)
    assert torch.equal(weights["norm"], expected["model.norm.weight"].bfloat16())


def test_what_cannot_be_quantised_is_named(tiny_model_dir: Callable[[str], Path]) -> None:
    folder = tiny_model_dir("llama")
    source = Damaged(open_model(str(folder), folder))
    with pytest.raises(ModelFormatError, match=r"'layers\.0\.qkv' cannot be stored as int4: values are not finite"):
        load_weights(source, [replace(PACKED, kind=ParameterKind.LINEAR)], "int4")


class Damaged:
    """A source whose every tensor has a value that is no number."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.name, self.config = source.name, source.config

    def digest(self) -> str:
        return self._source.digest()

    def tensor(self, hf_name: str) -> torch.Tensor:
        values = self._source.tensor(hf_name).clone()
        values[0, 0] = float("nan")
        return values


def load_weights(source: ModelSource, parameters: Sequence[Parameter], quantization: str) -> Mapping[str, Weight]:
    """Through a segment, as memd's loader does."""
    manifest = build_manifest(parameters, "bfloat16", quantization)
    segment = MemfdExporter().create("weights", manifest.total_bytes)
    weights = weight_views(MemfdImporter().map(segment, writable=True), manifest)
    fill(source, parameters, manifest, weights)
    return weights


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

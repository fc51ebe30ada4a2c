"""The model as a Hugging Face folder, for peers that read nothing else. transformers does the writing."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tandem.errors import ConfigError, ModelFormatError
from tandem.model.hf_folder import CONFIG, WEIGHTS
from tandem.model.location import ModelKind, locate
from tandem.model.registry import get_family
from tandem.model.source import ModelSource, open_model

DTYPE = torch.bfloat16


def export_hf_folder(model: str, cache_dir: Path, folder: Path) -> None:
    """Writes a GGUF model's configuration, tokenizer and bfloat16 weights into `folder`, and reads them back.

    ConfigError: not a GGUF model, or transformers is not installed. ModelFormatError: a weight came out other than
    Tandem reads it from the GGUF file.
    """
    location = locate(model, cache_dir)
    if location.kind is not ModelKind.GGUF:
        raise ConfigError("model", f"{model} is no GGUF file: peers can read what it is")
    transformers = _transformers()
    source = {"pretrained_model_name_or_path": location.path.parent, "gguf_file": location.path.name}
    imported = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=DTYPE)
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(imported, folder)
    save_file(_weights(imported), folder / WEIGHTS, metadata={"format": "pt"})
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    check_equal(open_model(model, cache_dir), open_model(str(folder), cache_dir))


def check_equal(one: ModelSource, other: ModelSource) -> None:
    """Bit by bit, in bfloat16: equal weights are equal logits. ModelFormatError names the first that differs."""
    parameters = get_family(one.config.family).parameters(one.config)
    for name in (name for parameter in parameters for name in parameter.sources):
        if not torch.equal(one.tensor(name).to(DTYPE), other.tensor(name).to(DTYPE)):
            raise ModelFormatError(f"{other.name}: tensor {name!r} is another than in {one.name}")


def _write_config(imported: Any, folder: Path) -> None:
    """As of a model that was never quantised."""
    dtype = str(DTYPE).removeprefix("torch.")
    fields = {**imported.config.to_diff_dict(), "architectures": [type(imported).__name__], "dtype": dtype}
    fields.pop("quantization_config", None)
    (folder / CONFIG).write_text(json.dumps(fields, indent=2))


def _weights(imported: Any) -> dict[str, torch.Tensor]:
    """Each once: a tied output head is the embedding."""
    tied = set(imported.all_tied_weights_keys)
    return {name: values.contiguous() for name, values in imported.state_dict().items() if name not in tied}


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "model", "writing a Hugging Face folder needs: pip install transformers accelerate"
        ) from error

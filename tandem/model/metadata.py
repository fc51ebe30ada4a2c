"""What a service that computes nothing knows of the model. No torch here."""

from dataclasses import dataclass
from pathlib import Path

from tandem.model.config import ModelConfig
from tandem.model.fields import Fields
from tandem.model.gguf_file import read_gguf
from tandem.model.gguf_tokenizer import read_gguf_tokenizer
from tandem.model.hf_folder import read_hf_config, read_hf_tokenizer
from tandem.model.location import ModelKind, ModelLocation, locate
from tandem.model.random_model import read_random_config, read_random_tokenizer
from tandem.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """`chat_template` is Jinja source, None where the model has none."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: str | None


def read_metadata(model: str, cache_dir: Path) -> ModelMetadata:
    """`model` as in the configuration; `cache_dir` holds the default model.

    ModelNotFoundError, ModelFormatError, UnsupportedModelError; each names the file.
    """
    location = locate(model, cache_dir)
    match location.kind:
        case ModelKind.GGUF:
            return _gguf_metadata(location)
        case ModelKind.HF_FOLDER:
            config, text = read_hf_config(location.path), read_hf_tokenizer(location.path)
        case ModelKind.RANDOM:
            config = read_random_config(location.path)
            text = read_random_tokenizer(location.path, config)
    return ModelMetadata(location.name, config, text.tokenizer, text.chat_template)


def _gguf_metadata(location: ModelLocation) -> ModelMetadata:
    file = read_gguf(location.path)
    template = Fields(str(location.path), file.header.metadata).optional_text("tokenizer.chat_template")
    return ModelMetadata(location.name, file.config, read_gguf_tokenizer(file), template)

"""A Hugging Face folder: its configuration, its tokenizer, and where its tensors are. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from tandem.errors import ModelFormatError, ModelNotFoundError
from tandem.model.config import ModelConfig
from tandem.model.fields import Fields, read_json, read_optional_json
from tandem.model.hf_config import model_config
from tandem.model.tokenizer import Tokenizer

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class HfTokenizer:
    """What of a folder the gateway needs beside the configuration."""

    tokenizer: Tokenizer
    chat_template: str | None


def read_hf_config(folder: Path) -> ModelConfig:
    """ModelNotFoundError, ModelFormatError, UnsupportedModelError; each names the file."""
    return model_config(read_json(folder / CONFIG), read_optional_json(folder / GENERATION_CONFIG))


def read_hf_tokenizer(folder: Path) -> HfTokenizer:
    """ModelNotFoundError, ModelFormatError, UnsupportedModelError; each names the file."""
    fields = read_optional_json(folder / TOKENIZER_CONFIG)
    bos, eos = _token_text(fields, "bos_token"), _token_text(fields, "eos_token")
    tokenizer = Tokenizer(str(folder / TOKENIZER), _backend(folder / TOKENIZER), bos, eos)
    return HfTokenizer(tokenizer, _chat_template(folder, fields))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files, in name order: the one there is, or those that the index names."""
    index = folder / WEIGHTS_INDEX
    paths = _indexed(folder, read_json(index)) if index.exists() else (folder / WEIGHTS,)
    for path in paths:
        if not _is_file(path):
            raise ModelNotFoundError(f"{path}: no such file; only safetensors weights are read")
    return paths


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for any file
        return False


def _indexed(folder: Path, index: Fields) -> tuple[Path, ...]:
    names: Mapping[str, object] = index.section("weight_map").values
    files = [name for name in names.values() if isinstance(name, str) and Path(name).name == name and "\0" not in name]
    if not files or len(files) != len(names):
        raise ModelFormatError(f"{index.origin}: weight_map does not name files of this folder")
    return tuple(folder / name for name in sorted(set(files)))


def _backend(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file; a tokenizer.json is needed") from error
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # the Rust side raises nothing narrower
        raise ModelFormatError(f"{path}: not a tokenizer: {error}") from error


def _token_text(fields: Fields, key: str) -> str | None:
    """A text, or the object that an added token is written as."""
    if isinstance(fields.values.get(key), Mapping):
        return fields.section(key).text("content")
    return fields.optional_text(key)


def _chat_template(folder: Path, fields: Fields) -> str | None:
    path = folder / CHAT_TEMPLATE
    if path.exists():
        return _read_text(path)
    templates = fields.values.get("chat_template")
    if not isinstance(templates, list):
        return fields.optional_text("chat_template")
    named = [Fields(fields.origin, item) for item in templates if isinstance(item, Mapping)]
    defaults = [item.text("template") for item in named if item.text("name") == "default"]
    return defaults[0] if defaults else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path}: not UTF-8") from error

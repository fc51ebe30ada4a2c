"""What the configuration's `model` names. No torch here."""

from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from tandem.errors import ModelNotFoundError
from tandem.model.default_model import default_model_path

DEFAULT = "default"
RANDOM_PREFIX = "random:"


class ModelKind(Enum):
    """The forms in which a model comes."""

    GGUF = auto()
    HF_FOLDER = auto()
    RANDOM = auto()


@dataclass(frozen=True, slots=True)
class ModelLocation:
    """`path` is a GGUF file, a Hugging Face folder, or the config.json of a random model."""

    kind: ModelKind
    path: Path
    name: str


def locate(model: str, cache_dir: Path) -> ModelLocation:
    """``default`` | a GGUF file | a Hugging Face folder | ``random:<config.json>``. ModelNotFoundError."""
    if model == DEFAULT:
        path = default_model_path(cache_dir)
        return ModelLocation(ModelKind.GGUF, path, path.stem)
    if model.startswith(RANDOM_PREFIX):
        return _locate_random(Path(model.removeprefix(RANDOM_PREFIX)).expanduser())
    return _locate_path(Path(model).expanduser())


def _locate_random(config_path: Path) -> ModelLocation:
    if not config_path.is_file():
        raise ModelNotFoundError(f"{config_path}: no such file; random:<path> takes the path of a config.json")
    return ModelLocation(ModelKind.RANDOM, config_path, f"random-{config_path.resolve().parent.name}")


def _locate_path(path: Path) -> ModelLocation:
    if path.is_dir():
        return ModelLocation(ModelKind.HF_FOLDER, path, path.resolve().name)
    if path.is_file():
        return ModelLocation(ModelKind.GGUF, path, path.stem)
    raise ModelNotFoundError(f"{path}: no such file or folder; a model is a GGUF file or a Hugging Face folder")

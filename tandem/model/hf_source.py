"""A Hugging Face folder's tensors."""

from pathlib import Path
from typing import Any

import safetensors
import torch

from tandem.errors import ModelFormatError
from tandem.model.config import ModelConfig
from tandem.model.digest import files_digest
from tandem.model.hf_folder import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    read_hf_config,
    weight_files,
)

_DESCRIPTIONS = (CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG)


class HfSource:
    """A `ModelSource`. The weight files are mapped, so a tensor is read when it is asked for."""

    def __init__(self, name: str, folder: Path) -> None:
        """ModelNotFoundError, ModelFormatError, UnsupportedModelError."""
        self.name = name
        self.config: ModelConfig = read_hf_config(folder)
        self._folder = folder
        self._paths = weight_files(folder)
        self._holders = _holders(self._paths)

    def digest(self) -> str:
        """SHA-256 over configuration, tokenizer and weights."""
        described = [self._folder / name for name in _DESCRIPTIONS]
        return files_digest([*(path for path in described if path.exists()), *self._paths])

    def tensor(self, hf_name: str) -> torch.Tensor:
        """In the file's dtype. ModelFormatError when it is missing or holds integers."""
        holder = self._holders.get(hf_name)
        if holder is None:
            raise ModelFormatError(f"{self._folder}: tensor {hf_name!r} is missing")
        values: torch.Tensor = holder.get_tensor(hf_name)
        if not values.is_floating_point():
            raise ModelFormatError(f"{self._folder}: tensor {hf_name!r} is {values.dtype}, not floating point")
        return values


def _holders(paths: tuple[Path, ...]) -> dict[str, Any]:
    """Which open file has each tensor."""
    holders: dict[str, Any] = {}
    for path in paths:
        file = _open(path)
        holders.update(dict.fromkeys(file.keys(), file))
    return holders


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelFormatError(f"{path}: truncated or damaged: {error}") from error

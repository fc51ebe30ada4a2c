"""Where weights come from, whatever the form of the model's files, and how they get into the weight segment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from kernels.quantised import QuantisedWeight, Weight, quantise
from tandem.errors import ModelFormatError
from tandem.model.config import ModelConfig, WeightManifest
from tandem.model.family import Parameter
from tandem.model.gguf_source import GgufSource
from tandem.model.hf_source import HfSource
from tandem.model.location import ModelKind, locate
from tandem.model.random_source import RandomSource


class ModelSource(Protocol):
    """A model's files, opened and checked. Not for several threads."""

    name: str
    config: ModelConfig

    def digest(self) -> str:
        """Equal for equal contents; reads everything."""
        ...

    def tensor(self, hf_name: str) -> torch.Tensor:
        """A checkpoint tensor by its Hugging Face name, in any float dtype. ModelFormatError: missing or damaged."""
        ...


def open_model(model: str, cache_dir: Path) -> ModelSource:
    """`model` as in the configuration; `cache_dir` holds the default model.

    ModelNotFoundError, ModelFormatError, UnsupportedModelError; each names the file.
    """
    location = locate(model, cache_dir)
    match location.kind:
        case ModelKind.GGUF:
            return GgufSource(location.name, location.path)
        case ModelKind.HF_FOLDER:
            return HfSource(location.name, location.path)
        case ModelKind.RANDOM:
            return RandomSource(location.name, location.path)


def fill(
    source: ModelSource,
    parameters: Sequence[Parameter],
    manifest: WeightManifest,
    weights: Mapping[str, Weight],
) -> None:
    """Copies every parameter of `manifest` into `weights` (views of the segment), casting to their dtype or quantising.

    ModelFormatError when a checkpoint tensor is missing, its shape does not fit, or its values cannot be quantised.
    """
    for parameter in parameters:
        target = weights[parameter.name]
        if isinstance(target, QuantisedWeight):
            _fill_quantised(source, parameter, target)
        else:
            _fill_plain(source, parameter, target.view(manifest.tensors[parameter.name].shape))


def _fill_quantised(source: ModelSource, parameter: Parameter, target: QuantisedWeight) -> None:
    """By way of float32: a panel's outputs may come from two checkpoint tensors."""
    values = torch.empty(parameter.shape)
    _fill_plain(source, parameter, values)
    try:
        quantised = quantise(values, target.format)
    except ValueError as error:
        problem = f"{parameter.name!r} cannot be stored as {target.format}: {error}"
        raise ModelFormatError(f"{source.name}: {problem}") from error
    target.digits.copy_(quantised.digits)
    target.scales.copy_(quantised.scales)


def _fill_plain(source: ModelSource, parameter: Parameter, target: torch.Tensor) -> None:
    row = 0
    for hf_name in parameter.sources:
        values = source.tensor(hf_name)
        num_rows = values.shape[0] if values.dim() else 0
        part = target[row : row + num_rows]
        if part.shape != values.shape:
            raise _misfit(source, hf_name, values, parameter)
        part.copy_(values)
        row += num_rows
    if row != target.shape[0]:
        raise _misfit(source, parameter.sources[-1], values, parameter)


def _misfit(source: ModelSource, hf_name: str, values: torch.Tensor, parameter: Parameter) -> ModelFormatError:
    return ModelFormatError(
        f"{source.name}: tensor {hf_name!r} has shape {tuple(values.shape)}, which does not fit "
        f"{parameter.name!r} of shape {parameter.shape}"
    )

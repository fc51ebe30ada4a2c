"""A GGUF file's tensors, dequantised."""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from tandem.errors import ModelFormatError, UnsupportedModelError
from tandem.model.config import ModelConfig
from tandem.model.digest import files_digest
from tandem.model.gguf_file import GgufFile, read_gguf
from tandem.model.gguf_header import GgufTensor
from tandem.model.registry import get_family

_PERMUTED_FAMILIES = ("llama", "mistral")  # llama.cpp's converter for Llama reorders; those for Qwen do not


class GgufSource:
    """A `ModelSource`."""

    def __init__(self, name: str, path: Path) -> None:
        """ModelNotFoundError, ModelFormatError, UnsupportedModelError."""
        file = read_gguf(path)
        self.name = name
        self.config: ModelConfig = file.config
        self._path = path
        self._tensors = file.tensors
        _check_quantisations(path, file.tensors)
        _check_all_used(path, file)

    def digest(self) -> str:
        """SHA-256 over the file."""
        return files_digest([self._path])

    def tensor(self, hf_name: str) -> torch.Tensor:
        """In float32, rows in Hugging Face's order. ModelFormatError when there is no such tensor."""
        if hf_name not in self._tensors:
            raise ModelFormatError(f"{self._path}: tensor {hf_name!r} is missing")
        values = self._read(self._tensors[hf_name])
        num_heads = self._num_permuted_heads(hf_name)
        return values if num_heads is None else _unpermuted(self._path, hf_name, values, num_heads)

    def _read(self, tensor: GgufTensor) -> torch.Tensor:
        block_elements, block_bytes = GGML_QUANT_SIZES[tensor.kind]
        data = np.fromfile(self._path, np.uint8, tensor.num_bytes, offset=tensor.offset_bytes)
        if data.size != tensor.num_bytes:
            raise ModelFormatError(f"{self._path}: cut short while it was read")
        rows = data.reshape(*tensor.shape[:-1], tensor.shape[-1] // block_elements * block_bytes)
        return torch.from_numpy(gguf.dequantize(rows, tensor.kind))

    def _num_permuted_heads(self, hf_name: str) -> int | None:
        if self.config.family not in _PERMUTED_FAMILIES:
            return None
        if ".q_proj." in hf_name:
            return self.config.num_heads
        return self.config.num_kv_heads if ".k_proj." in hf_name else None


def _unpermuted(path: Path, hf_name: str, values: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undoes llama.cpp's order of a head's rows: pairs (i, i + head_dim / 2) side by side, as its rope wants them."""
    if values.shape[0] % (2 * num_heads):
        raise ModelFormatError(f"{path}: tensor {hf_name!r} has {values.shape[0]} rows for {num_heads} heads")
    heads = values.reshape(num_heads, -1, 2, *values.shape[1:])  # [num_heads, head_dim / 2, 2, ...]
    return heads.transpose(1, 2).reshape(values.shape)


def _check_quantisations(path: Path, tensors: dict[str, GgufTensor]) -> None:
    examples = {tensor.kind: tensor for tensor in tensors.values()}
    for kind, tensor in examples.items():
        if not _is_dequantisable(kind):
            raise UnsupportedModelError(f"{path}: tensor {tensor.name!r}: {kind.name} values are not built")


def _check_all_used(path: Path, file: GgufFile) -> None:
    """A tensor that the family does not have, such as a bias, would be left out of every product."""
    parameters = get_family(file.config.family).parameters(file.config)
    used = {source for parameter in parameters for source in parameter.sources}
    for hf_name, tensor in file.tensors.items():
        if hf_name not in used:
            problem = f"tensor {tensor.name!r} in {file.config.family} is not built"
            raise UnsupportedModelError(f"{path}: {problem}")


def _is_dequantisable(kind: GGMLQuantizationType) -> bool:
    try:
        gguf.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True

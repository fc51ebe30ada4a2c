"""What a decoder-only transformer is made of, whichever file it came from. No torch here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's frequency-dependent scaling (``rope_type: llama3``); other kinds are refused by the loader."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Field names are Hugging Face's where they have one."""

    family: str  # a key of tandem.model.registry: llama | qwen2 | qwen3 | mistral
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # biases on the query, key and value projections
    sliding_window: int | None = None  # Mistral: keys further back are not attended to
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def to_json(self) -> str:
        """For the wire; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Reads what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        scaling = values.pop("rope_scaling")
        eos = tuple(values.pop("eos_token_ids"))
        return cls(**values, rope_scaling=RopeScaling(**scaling) if scaling else None, eos_token_ids=eos)


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one parameter lies in the weight segment; a quantised one's digits and scales lie apart."""

    shape: tuple[int, ...]
    offset_bytes: int
    format: str = ""  # of kernels.quantised.WeightFormat; empty: plain, in the manifest's dtype
    scales_offset_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """The weight segment: every parameter of the family, packed ones already fused, each 64-byte aligned."""

    dtype: str
    total_bytes: int
    tensors: Mapping[str, TensorPlace] = field(default_factory=dict)
    quantization: str = "none"

    @property
    def stored_dtype(self) -> str:
        """As the fingerprint names it: ``bfloat16``, or ``bfloat16+int4`` where the large parameters are quantised."""
        return self.dtype if self.quantization == "none" else f"{self.dtype}+{self.quantization}"

    def to_json(self) -> str:
        """For the wire; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WeightManifest":
        """Reads what `to_json` wrote."""
        values = json.loads(text)
        places = values.pop("tensors")
        tensors = {name: TensorPlace(tuple(place.pop("shape")), **place) for name, place in places.items()}
        return cls(**values, tensors=tensors)

"""A decoder over quantised weights: near the one over what they stand for, with each set of kernels."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch

from kernels.quantised import QuantisedWeight, Weight, dequantise, quantise
from kernels.table import Kernels, torch_kernels
from tandem.model.config import ModelConfig
from tandem.model.family import Parameter
from tandem.model.quantisation import QUANTIZATIONS
from tandem.model.registry import MODULES, get_family
from tests.support.kernel_sets import KERNEL_SETS, NATIVE_SETS, kernel_set
from tests.support.paged_decoder import PagedDecoder, one_thread

LLAMA = ModelConfig("llama", 64, 96, 2, 4, 2, 16, 160, 512, 1e-5, 1e4)
CONFIGS = {
    "llama": LLAMA,
    "llama, biased": replace(LLAMA, attention_bias=True),
    "llama, tied": replace(LLAMA, tie_word_embeddings=True),
    "qwen3": replace(LLAMA, family="qwen3"),
    "odd": replace(LLAMA, hidden_size=50, intermediate_size=41, num_heads=3, num_kv_heads=1, head_dim=24),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request: pytest.FixtureRequest) -> ModelConfig:
    chosen: ModelConfig = request.param
    return chosen


@pytest.fixture(params=["int8", "int4"])
def weights(request: pytest.FixtureRequest, config: ModelConfig) -> Mapping[str, Weight]:
    generator = torch.Generator().manual_seed(3)
    formats = QUANTIZATIONS[request.param]
    made: dict[str, Weight] = {}
    for parameter in get_family(config.family).parameters(config):
        value = drawn(parameter, generator)
        made[parameter.name] = quantise(value, formats[parameter.kind]) if parameter.kind in formats else value
    return made


def drawn(parameter: Parameter, generator: torch.Generator) -> torch.Tensor:
    value = torch.randn(parameter.shape, generator=generator)
    return (1 + 0.1 * value if "norm" in parameter.name else value * parameter.shape[-1] ** -0.5).bfloat16()


def logits(config: ModelConfig, weights: Mapping[str, Weight], kernels: Kernels, dtype: torch.dtype) -> torch.Tensor:
    """Of a prompt, then of one row after it."""
    cast = {
        name: weight if isinstance(weight, QuantisedWeight) else weight.to(dtype) for name, weight in weights.items()
    }
    built = get_family(config.family).build(config, cast, kernels)
    subject = PagedDecoder(config, built, num_sequences=1, max_tokens=128, dtype=dtype)
    prompt = [(7 * i + 1) % config.vocab_size for i in range(70)]
    return torch.cat([subject.whole(0, prompt), *subject.step([subject.rows(0, [5], 70)])])


def plain(weights: Mapping[str, Weight]) -> dict[str, torch.Tensor]:
    return {
        name: dequantise(weight, torch.float32) if isinstance(weight, QuantisedWeight) else weight
        for name, weight in weights.items()
    }


def test_torch_computes_what_the_weights_stand_for(config: ModelConfig, weights: Mapping[str, Weight]) -> None:
    ours = logits(config, weights, torch_kernels(), torch.float32)
    assert torch.equal(ours, logits(config, plain(weights), torch_kernels(), torch.float32))


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_every_set_is_near_float32(name: str, config: ModelConfig, weights: Mapping[str, Weight]) -> None:
    exact = logits(config, plain(weights), torch_kernels(), torch.float32)
    ours = logits(config, weights, kernel_set(name), torch.bfloat16)
    assert exact.std() > 0.3
    assert (ours - exact).abs().mean() < 0.03 * exact.std()


@pytest.mark.parametrize("name", NATIVE_SETS)
def test_one_call_equals_operators_one_by_one(name: str, config: ModelConfig, weights: Mapping[str, Weight]) -> None:
    native = kernel_set(name)
    fused = logits(config, weights, native, torch.bfloat16)
    assert torch.equal(fused, logits(config, weights, replace(native, fuse_layers=None), torch.bfloat16))


@pytest.mark.parametrize("family", MODULES)
def test_every_matrix_is_quantised_and_nothing_else(family: str) -> None:
    for parameter in get_family(family).parameters(replace(LLAMA, family=family, attention_bias=True)):
        assert (parameter.kind in QUANTIZATIONS["int4"]) == (len(parameter.shape) == 2), parameter.name


def test_a_quantised_norm_is_refused() -> None:
    weights = {p.name: drawn(p, torch.Generator()) for p in get_family("llama").parameters(LLAMA)}
    table = quantise(weights["model.embed_tokens.weight"], next(iter(QUANTIZATIONS["int8"].values())))
    with pytest.raises(TypeError, match=r"model\.norm\.weight is quantised"):
        get_family("llama").build(LLAMA, {**weights, "model.norm.weight": table}, torch_kernels())

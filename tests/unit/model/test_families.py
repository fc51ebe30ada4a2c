"""Each family with a tiny random model against transformers' own forward pass, in float32."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

from kernels.table import torch_kernels
from tandem.errors import UnsupportedModelError
from tandem.model.config import ModelConfig, RopeScaling
from tandem.model.registry import get_family
from tests.support.paged_decoder import PagedDecoder, one_thread, pack_weights
from tests.support.tiny_models import tiny_model

TOLERANCE = 1e-4
VOCAB_SIZE = 384
LLAMA3 = RopeScaling(8.0, 1.0, 4.0, 32)
LLAMA3_IN_TRANSFORMERS = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Variant:
    """A model as transformers and as we describe it; each in its own words."""

    family: str
    theirs: Mapping[str, Any]
    ours: Mapping[str, Any]


VARIANTS = {
    "llama": Variant("llama", {}, {}),
    "llama, tied": Variant("llama", {"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    "llama, biased": Variant("llama", {"attention_bias": True}, {"attention_bias": True}),
    "llama, scaled": Variant("llama", {"rope_parameters": LLAMA3_IN_TRANSFORMERS}, {"rope_scaling": LLAMA3}),
    "qwen2": Variant("qwen2", {}, {"attention_bias": True}),
    "qwen3": Variant("qwen3", {}, {}),
    "qwen3, biased": Variant("qwen3", {"attention_bias": True}, {"attention_bias": True}),
    "mistral": Variant("mistral", {"sliding_window": None}, {}),
    "mistral, window": Variant("mistral", {"sliding_window": 11}, {"sliding_window": 11}),
}


@dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    theirs: transformers.PreTrainedModel
    ours: PagedDecoder

    def expected(self, token_ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self.theirs(torch.tensor([token_ids]), use_cache=False).logits[0]


def our_config(variant: Variant, theirs: transformers.PretrainedConfig) -> ModelConfig:
    values: dict[str, Any] = {
        "family": variant.family,
        "hidden_size": theirs.hidden_size,
        "intermediate_size": theirs.intermediate_size,
        "num_layers": theirs.num_hidden_layers,
        "num_heads": theirs.num_attention_heads,
        "num_kv_heads": theirs.num_key_value_heads,
        "head_dim": theirs.head_dim,
        "vocab_size": theirs.vocab_size,
        "max_position_embeddings": theirs.max_position_embeddings,
        "rms_norm_eps": theirs.rms_norm_eps,
        "rope_theta": theirs.rope_parameters["rope_theta"],
    }
    return ModelConfig(**{**values, **variant.ours})


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def pair(request: pytest.FixtureRequest) -> Pair:
    theirs = tiny_model(request.param.family, **request.param.theirs)
    config = our_config(request.param, theirs.config)
    weights = pack_weights(config, theirs.state_dict().__getitem__, torch.float32)
    decoder = get_family(config.family).build(config, weights, torch_kernels())
    return Pair(theirs, PagedDecoder(config, decoder, num_sequences=4, max_tokens=128, dtype=torch.float32))


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.3  # logits that tell tokens apart
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("length", [2, 17, 100])
def test_whole_prompt(pair: Pair, length: int) -> None:
    assert_near(pair.ours.whole(0, prompt(length)), pair.expected(prompt(length)))


def test_chunks_of_seven(pair: Pair) -> None:
    assert_near(pair.ours.chunked(1, prompt(100), 7), pair.expected(prompt(100)))


def test_prompts_in_one_batch(pair: Pair) -> None:
    prompts = [prompt(length, seed=length) for length in (1, 33, 64, 5)]
    step = pair.ours.step([pair.ours.rows(index, ids, 0) for index, ids in enumerate(prompts)])
    for actual, token_ids in zip(step, prompts, strict=True):
        assert_near(actual, pair.expected(token_ids))


def test_decode_steps_beside_a_chunk(pair: Pair) -> None:
    """Two sequences grow token by token while a third one is prefilled in the same steps."""
    first, second, third = prompt(40, seed=1), prompt(29, seed=2), prompt(60, seed=3)
    rows = pair.ours.rows
    pieces = [pair.ours.step([rows(0, first[:30], 0), rows(1, second[:19], 0), rows(2, third[:10], 0)])]
    for i in range(10):
        step = [rows(2, third[10 + 5 * i : 15 + 5 * i], 10 + 5 * i)]
        step += [rows(0, first[30 + i : 31 + i], 30 + i), rows(1, second[19 + i : 20 + i], 19 + i)]
        chunk, token, other = pair.ours.step(step)
        pieces.append([token, other, chunk])
    for index, token_ids in enumerate((first, second, third)):
        assert_near(torch.cat([piece[index] for piece in pieces]), pair.expected(token_ids))


def test_a_later_token_does_not_change_earlier_rows_by_one_bit(pair: Pair) -> None:
    tokens = prompt(50)
    one, other = (pair.ours.whole(index, [*tokens, last]) for index, last in enumerate((3, 4)))
    assert torch.equal(one[:50], other[:50])
    assert not torch.equal(one[50], other[50])


def test_every_checkpoint_tensor_is_used_once(pair: Pair, request: pytest.FixtureRequest) -> None:
    variant = VARIANTS[request.node.callspec.id]
    config = our_config(variant, pair.theirs.config)
    sources = [source for p in get_family(config.family).parameters(config) for source in p.sources]
    assert sorted(sources) == sorted(dict(pair.theirs.named_parameters()))


def test_weights_are_used_in_place() -> None:
    theirs = tiny_model("llama")
    config = our_config(VARIANTS["llama"], theirs.config)
    weights = pack_weights(config, theirs.state_dict().__getitem__, torch.float32)
    decoder = get_family("llama").build(config, weights, torch_kernels())
    ours = PagedDecoder(config, decoder, num_sequences=1, max_tokens=16, dtype=torch.float32)
    before = ours.whole(0, prompt(5))
    for tensor in weights.values():
        tensor.zero_()
    assert before.any()
    assert not ours.whole(0, prompt(5)).any()


def test_an_unknown_family_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"gpt17.*llama, mistral, qwen2, qwen3"):
        get_family("gpt17")

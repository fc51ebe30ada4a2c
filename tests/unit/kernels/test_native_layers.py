"""All layers in one native call against the same operators one by one, and against the torch kernels in float32."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from kernels.table import Kernels, torch_kernels
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tests.support.kernel_sets import NATIVE_SETS, kernel_set
from tests.support.paged_decoder import PagedDecoder, num_threads

LLAMA = ModelConfig("llama", 64, 96, 3, 4, 2, 16, 160, 512, 1e-5, 1e4)
CONFIGS = {
    "llama": LLAMA,
    "llama, biased": replace(LLAMA, attention_bias=True),
    "llama, tied": replace(LLAMA, tie_word_embeddings=True),
    "qwen3": replace(LLAMA, family="qwen3"),
    "mistral, window": replace(LLAMA, family="mistral", sliding_window=21),
    "odd": replace(LLAMA, hidden_size=50, intermediate_size=41, num_heads=3, num_kv_heads=1, head_dim=24),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request: pytest.FixtureRequest) -> ModelConfig:
    chosen: ModelConfig = request.param
    return chosen


@pytest.fixture(params=NATIVE_SETS)
def native(request: pytest.FixtureRequest) -> Kernels:
    return kernel_set(request.param)


@pytest.fixture(params=[1, 2], autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with num_threads(request.param):
        yield


def random_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Of values that bfloat16 has; norms near one."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for parameter in get_family(config.family).parameters(config):
        drawn = torch.randn(parameter.shape, generator=generator)
        scaled = 1 + 0.1 * drawn if "norm" in parameter.name else drawn * parameter.shape[-1] ** -0.5
        weights[parameter.name] = scaled.bfloat16()
    return weights


def decoder(config: ModelConfig, kernels: Kernels, dtype: torch.dtype) -> PagedDecoder:
    weights = {name: weight.to(dtype) for name, weight in random_weights(config).items()}
    built = get_family(config.family).build(config, weights, kernels)
    return PagedDecoder(config, built, num_sequences=3, max_tokens=256, dtype=dtype)


def run(subject: PagedDecoder, vocab_size: int) -> torch.Tensor:
    """A prompt beside another, then decode rows of both beside a chunk of a third; then chosen rows of the first."""

    def ids(first: int, count: int) -> list[int]:
        return [(7 * i + first) % vocab_size for i in range(count)]

    rows: Callable = subject.rows
    logits = subject.step([rows(0, ids(1, 70), 0), rows(1, ids(2, 5), 0)])
    logits += subject.step([rows(0, ids(3, 1), 70), rows(1, ids(4, 1), 5), rows(2, ids(5, 33), 0)])
    positions = [*range(3, 40, 3), 44, 45, 69]
    logits += subject.step([replace(rows(0, ids(6, len(positions)), 3), positions=positions), rows(1, ids(7, 1), 6)])
    return torch.cat(logits)


def test_one_call_equals_operators_one_by_one(config: ModelConfig, native: Kernels) -> None:
    fused = run(decoder(config, native, torch.bfloat16), config.vocab_size)
    one_by_one = run(decoder(config, replace(native, fuse_layers=None), torch.bfloat16), config.vocab_size)
    assert torch.equal(fused, one_by_one)


def run_short(subject: PagedDecoder, vocab_size: int) -> torch.Tensor:
    """Steps of one to four rows behind a prompt long enough for its keys to be split among threads."""

    def ids(first: int, count: int) -> list[int]:
        return [(7 * i + first) % vocab_size for i in range(count)]

    rows: Callable = subject.rows
    subject.step([rows(0, ids(1, 200), 0), rows(1, ids(2, 5), 0)])
    logits = [row for position in range(200, 208) for row in subject.step([rows(0, ids(position, 1), position)])]
    logits += subject.step([rows(0, ids(3, 1), 208), rows(1, ids(4, 2), 5)])
    logits += subject.step([rows(0, ids(5, 2), 209), rows(1, ids(6, 2), 7)])
    return torch.cat(logits)


def test_a_short_step_is_the_same_whoever_does_which_of_its_pieces(config: ModelConfig, native: Kernels) -> None:
    with num_threads(1):
        alone = run_short(decoder(config, native, torch.bfloat16), config.vocab_size)
    with num_threads(5):  # more than cores: they lose them amid their pieces
        together = run_short(decoder(config, native, torch.bfloat16), config.vocab_size)
    assert torch.equal(together, alone)


def test_pauses_between_layers_change_nothing(config: ModelConfig, native: Kernels) -> None:
    pauses: list[None] = []
    paused = run(decoder(config, replace(native, pause=lambda: pauses.append(None)), torch.bfloat16), config.vocab_size)
    assert torch.equal(paused, run(decoder(config, native, torch.bfloat16), config.vocab_size))
    assert len(pauses) == config.num_layers  # of the long step alone


def test_as_near_to_float32_as_torch_is(config: ModelConfig, native: Kernels) -> None:
    exact = run(decoder(config, torch_kernels(), torch.float32), config.vocab_size)
    theirs = run(decoder(config, torch_kernels(), torch.bfloat16), config.vocab_size)
    ours = run(decoder(config, native, torch.bfloat16), config.vocab_size)
    assert exact.std() > 0.3
    assert (ours - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()
    torch.testing.assert_close(ours, exact, atol=0.15, rtol=0)

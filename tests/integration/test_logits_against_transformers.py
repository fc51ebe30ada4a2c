"""The default model against transformers: same GGUF, read by transformers itself, float32 unless said otherwise."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import transformers

from kernels.table import Kernels, torch_kernels
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.metadata import read_metadata
from tandem.model.registry import get_family
from tandem.model.source import ModelSource, open_model
from tandem.runner.model_runner import ModelRunner
from tandem.runner.sampler import Draw, sample
from tandem.types import SamplingSpec
from tests.support.kernel_sets import KERNEL_SETS, kernel_set
from tests.support.paged_decoder import PagedDecoder, one_thread, pack_weights

TOLERANCE = 1e-3
LENGTHS = (1, 17, 512)
TEXT = Path(__file__).parents[2] / "LICENSE"
NUM_GREEDY_TOKENS = 64
GREEDY_PROMPT_LENGTHS = (3, 16, 29, 50)
PROMPTS_OF_EACH_LENGTH = 5


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def source(default_model_path: Path) -> ModelSource:
    return open_model(str(default_model_path), default_model_path.parent)


@pytest.fixture(scope="module")
def text_ids(default_model_path: Path) -> list[int]:
    return read_metadata(str(default_model_path), default_model_path.parent).tokenizer.encode(TEXT.read_text())


@pytest.fixture(scope="module")
def theirs(default_reference_model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    return default_reference_model


@pytest.fixture(params=KERNEL_SETS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernel_set(request.param)


def our_model(source: ModelSource, dtype: torch.dtype, kernels: Kernels, num_sequences: int = 4) -> PagedDecoder:
    config: ModelConfig = source.config
    decoder = get_family(config.family).build(config, pack_weights(config, source.tensor, dtype), kernels)
    return PagedDecoder(config, decoder, num_sequences=num_sequences, max_tokens=640, dtype=dtype)


@pytest.fixture(scope="module")
def ours(source: ModelSource) -> PagedDecoder:
    return our_model(source, torch.float32, torch_kernels(), num_sequences=20)


@pytest.fixture(scope="module", params=LENGTHS)
def prompt(request: pytest.FixtureRequest, text_ids: list[int]) -> list[int]:
    return text_ids[100 : 100 + request.param]


@pytest.fixture(scope="module")
def expected(prompt: list[int], theirs: transformers.PreTrainedModel) -> Iterator[torch.Tensor]:
    with torch.inference_mode():
        yield theirs(torch.tensor([prompt]), use_cache=False).logits[0]


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < TOLERANCE


def test_whole(ours: PagedDecoder, prompt: list[int], expected: torch.Tensor) -> None:
    assert_near(ours.whole(0, prompt), expected)


@pytest.mark.parametrize("chunk", [7, 64])
def test_chunked(ours: PagedDecoder, prompt: list[int], expected: torch.Tensor, chunk: int) -> None:
    assert_near(ours.chunked(1, prompt, chunk), expected)


def test_batched_with_others(
    ours: PagedDecoder, prompt: list[int], expected: torch.Tensor, text_ids: list[int]
) -> None:
    """Between a decode row deep in its context and a short prompt."""
    ours.whole(2, text_ids[700:950])
    before, after = ours.rows(2, text_ids[950:951], 250), ours.rows(3, text_ids[:40], 0)
    assert_near(ours.step([before, ours.rows(0, prompt, 0), after])[1], expected)


def their_greedy(model: transformers.PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompts of one length, so that nothing is padded."""
    outputs: list[list[int]] = [[] for _ in prompts]
    cache, step = None, torch.tensor(prompts)
    with torch.inference_mode():
        for _ in range(NUM_GREEDY_TOKENS):
            result = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, step = result.past_key_values, result.logits[:, -1].argmax(-1, keepdim=True)
            for output, token_id in zip(outputs, step[:, 0].tolist(), strict=True):
                output.append(token_id)
    return outputs


def our_greedy(ours: PagedDecoder, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Runner and sampler, all prompts in one batch."""
    runner = ModelRunner(ours.decoder, ours.kv_cache, ours.block_size)
    greedy = Draw(SamplingSpec(temperature=0.0), 0, (), ())
    tokens, num_stored = [list(prompt) for prompt in prompts], [0] * len(prompts)
    for _ in range(NUM_GREEDY_TOKENS):
        rows = [
            SequenceRows(ids[start:], start, ours.block_ids[index])
            for index, (ids, start) in enumerate(zip(tokens, num_stored, strict=True))
        ]
        num_stored = [len(ids) for ids in tokens]
        for ids, token in zip(tokens, sample(runner.execute(rows), [greedy] * len(rows)), strict=True):
            ids.append(token.token_id)
    return [ids[len(prompt) :] for ids, prompt in zip(tokens, prompts, strict=True)]


def test_greedy_tokens_are_identical(
    ours: PagedDecoder, theirs: transformers.PreTrainedModel, text_ids: list[int]
) -> None:
    groups = [
        [text_ids[60 * i + 7 * length :][:length] for i in range(PROMPTS_OF_EACH_LENGTH)]
        for length in GREEDY_PROMPT_LENGTHS
    ]
    expected = [output for group in groups for output in their_greedy(theirs, group)]
    actual = our_greedy(ours, [prompt for group in groups for prompt in group])
    assert len(actual) == 20
    assert actual == expected


def test_bfloat16_agrees_on_the_likeliest_token(
    source: ModelSource, theirs: transformers.PreTrainedModel, text_ids: list[int], kernels: Kernels
) -> None:
    """bfloat16 weights and cache against transformers in float32, at every position of a text."""
    token_ids = text_ids[:512]
    with torch.inference_mode():
        expected = theirs(torch.tensor([token_ids]), use_cache=False).logits[0]
    actual = our_model(source, torch.bfloat16, kernels).whole(0, token_ids)
    agreement = (actual.argmax(-1) == expected.argmax(-1)).float().mean().item()
    print(f"bfloat16 top-1 agreement with float32, {kernels.name}: {agreement:.4f}")  # noqa: T201
    assert agreement > 0.9

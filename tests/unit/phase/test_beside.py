"""What a sequence brings to a step beside its part of it, through the one thread that computes."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pytest
import torch

from kernels.table import torch_kernels
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tandem.phase.stepper import Beside, StepPart, Stepper, StepResult
from tandem.runner.model_runner import ModelRunner
from tandem.runner.sampler import Draw, SampledToken, sample
from tandem.runner.segment_steps import SegmentSteps
from tandem.runner.selective import chosen_rows, last_rows
from tandem.runner.steps import LogitsThenDraws
from tandem.types import SamplingSpec
from tests.support.paged_decoder import one_thread, pack_weights
from tests.support.tiny_models import NUM_TOKENS, tiny_model

CONFIG = ModelConfig("llama", 64, 96, 3, 4, 2, 16, NUM_TOKENS, 512, 1e-6, 1e4)
TOKENS = [list(range(3, 63)), list(range(40, 75))]
BLOCKS = [list(range(4)), list(range(4, 8))]
LOGPROBS = SamplingSpec(temperature=0.0, logprobs=True, num_top_logprobs=5)


@pytest.fixture(scope="module")
def steppers() -> Iterator[Callable[[], tuple[Stepper, torch.Tensor]]]:
    """Each over a cache of its own, where both sequences' KV is but the last token's."""
    theirs = tiny_model("llama", num_hidden_layers=CONFIG.num_layers)
    weights, kernels = pack_weights(CONFIG, theirs.state_dict().__getitem__, torch.float32), torch_kernels()
    made: list[Stepper] = []

    def make() -> tuple[Stepper, torch.Tensor]:
        kv_cache = torch.full((CONFIG.num_layers, 2, 8, 16, CONFIG.num_kv_heads, CONFIG.head_dim), float("nan"))
        runner = ModelRunner(get_family("llama").build(CONFIG, weights, kernels), kv_cache, 16)
        runner.execute([SequenceRows(tokens[:-1], 0, ids) for tokens, ids in zip(TOKENS, BLOCKS, strict=True)])
        open_segments = partial(SegmentSteps, CONFIG, weights, kernels, kv_cache)
        made.append(Stepper(LogitsThenDraws(runner, sample), open_segments=open_segments))
        return made[-1], kv_cache

    with one_thread():
        yield make
    for stepper in made:
        stepper.close()


def running(index: int) -> StepPart:
    tokens = TOKENS[index]
    return StepPart(SequenceRows(tokens[-1:], len(tokens) - 1, BLOCKS[index]), Draw(LOGPROBS, len(tokens), tokens, ()))


def step(stepper: Stepper, parts: Sequence[StepPart]) -> Sequence[StepResult]:
    return asyncio.run(stepper.step(parts))


def test_the_others_get_the_same_bits_with_a_refresh_and_a_look_beside_them(
    steppers: Callable[[], tuple[Stepper, torch.Tensor]],
) -> None:
    (plain, plain_kv), (beside, beside_kv) = steppers(), steppers()
    for _, kv in ((plain, plain_kv), (beside, beside_kv)):
        kv[:, :, 0, 5:9] = 0.25  # approximate, of the first sequence
    refresh = StepPart(chosen_rows(TOKENS[0], (5, 6, 8), BLOCKS[0]), None, beside=Beside.REFRESH)
    look = StepPart(last_rows(TOKENS[0], 7, BLOCKS[0]), None, beside=Beside.LOOK)
    expected = step(plain, [running(0), running(1)])
    first, second, refreshed, scores = step(beside, [running(0), running(1), refresh, look])
    assert second == expected[1]
    assert isinstance(first, SampledToken)
    assert first != expected[0], "it sees what was refreshed"
    assert refreshed is None
    assert isinstance(scores, np.ndarray)
    assert scores.shape == (len(TOKENS[0]),)
    assert scores.sum() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(beside_kv[:, :, 4:6], plain_kv[:, :, 4:6])


def test_a_refresh_writes_its_rows_and_a_look_nothing(steppers: Callable[[], tuple[Stepper, torch.Tensor]]) -> None:
    stepper, kv = steppers()
    kv[:, :, 0, 5:9] = 0.25
    before = kv.clone()
    step(stepper, [StepPart(last_rows(TOKENS[0][:-1], 9, BLOCKS[0]), None, beside=Beside.LOOK)])
    assert torch.equal(kv.nan_to_num(), before.nan_to_num())
    step(stepper, [StepPart(chosen_rows(TOKENS[0], (5, 6, 8), BLOCKS[0]), None, beside=Beside.REFRESH)])
    changed = (kv.nan_to_num() != before.nan_to_num()).any(-1).any(-1).any(0).any(0)  # [num_blocks, block_size]
    assert [tuple(slot) for slot in changed.nonzero().tolist()] == [(0, 5), (0, 6), (0, 8)]

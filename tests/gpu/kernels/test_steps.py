"""Whole steps: captured on a GPU, computed again under the interpreter; padding, sampling and all."""

import pytest
import torch

from bench.gpu.rehearsal import RehearsedGraphs
from kernels.gpu.draw_tokens import draw_tokens
from kernels.gpu.kernels import gpu_kernels
from kernels.gpu.sample_tokens import sample_tokens
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tandem.runner.cuda.graphs import GraphBackend, StepStream, TorchGraphs
from tandem.runner.cuda.steps import CudaSteps, DeviceModel
from tandem.runner.model_runner import ModelRunner
from tandem.runner.sampler import Draw, SampledToken
from tandem.types import SamplingSpec

pytestmark = pytest.mark.gpu

CONFIG = ModelConfig("llama", 64, 96, 2, 4, 2, 16, 160, 512, 1e-5, 1e4)
BLOCK_SIZE, NUM_BLOCKS, NUM_SMS = 16, 12, 8
STALE = 123.0
SAMPLINGS = (
    SamplingSpec(temperature=0.0),
    SamplingSpec(temperature=0.8, top_p=0.9, seed=5),
    SamplingSpec(temperature=1.0, top_k=9, min_p=0.02, seed=2**63 + 1),
)


def runner_on(device: torch.device) -> tuple[ModelRunner, torch.Tensor]:
    """With its own cache, in which every slot is stale."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for parameter in get_family(CONFIG.family).parameters(CONFIG):
        drawn = torch.randn(parameter.shape, generator=generator)
        scaled = 1 + 0.1 * drawn if "norm" in parameter.name else drawn * parameter.shape[-1] ** -0.5
        weights[parameter.name] = scaled.bfloat16().to(device)
    shape = (CONFIG.num_layers, 2, NUM_BLOCKS, BLOCK_SIZE, CONFIG.num_kv_heads, CONFIG.head_dim)
    cache = torch.full(shape, STALE, dtype=torch.bfloat16, device=device)
    decoder = get_family(CONFIG.family).build(CONFIG, weights, gpu_kernels(NUM_SMS))
    return ModelRunner(decoder, cache, BLOCK_SIZE), cache


def graphs_on(device: torch.device) -> GraphBackend:
    return TorchGraphs(device, StepStream()) if device.type == "cuda" else RehearsedGraphs()


def test_tokens_of_captured_steps_are_those_of_the_same_kernels_launched_one_by_one(device: torch.device) -> None:
    ours, cache = runner_on(device)
    model = DeviceModel(lambda _: ours, device, BLOCK_SIZE, CONFIG.vocab_size, sample_tokens, draw_tokens)
    steps = CudaSteps(model, graphs_on(device))
    plain, plain_cache = runner_on(device)
    block_ids = [[3, 7], [1], [9, 4]]
    token_ids = [[5, 8, 13, 21, 34, 55, 89, 144, 72, 6, 2, 1, 17, 9, 40], [11, 12], [100, 90, 80]]
    done = [0, 0, 0]
    for running in ([0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 2], [0, 2], [2]):
        rows = [SequenceRows(token_ids[each][done[each] :], done[each], block_ids[each]) for each in running]
        draws = [Draw(SAMPLINGS[each], len(token_ids[each]), (), (), (3,) if each else ()) for each in running]
        tokens = steps.execute(rows, draws)
        logits = plain.execute(rows).clone()
        for index, each in enumerate(running):
            logits[index, 3] = logits[index, 3] if not each else float("-inf")
        expected = draw_tokens(logits, [draw.sampling for draw in draws], [draw.position for draw in draws])
        assert tokens == [SampledToken(token_id, None) for token_id in expected]
        for each, token_id in zip(running, expected, strict=True):
            done[each] = len(token_ids[each])
            token_ids[each].append(token_id)
    torch.testing.assert_close(cache, plain_cache, atol=5e-2, rtol=5e-2)
    foreign = sorted(set(range(NUM_BLOCKS)) - {block_id for each in block_ids for block_id in each})
    assert bool((cache[:, :, foreign] == STALE).all())

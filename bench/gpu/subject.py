"""Models of random weights on the device, in the shape of known ones, with the steps that a phase would run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.gpu.bench import Bench
from bench.gpu.rehearsal import RehearsedGraphs, padded_kernels, sample_rows
from kernels.draw_tokens import draw_tokens
from kernels.quantised import Weight
from kernels.table import torch_kernels
from tandem.kv.layout import num_blocks_for
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tandem.runner.cuda.graphs import StepStream
from tandem.runner.cuda.opening import open_cuda_steps
from tandem.runner.cuda.steps import CudaSteps, DeviceModel
from tandem.runner.model_runner import ModelRunner
from tandem.runner.sampler import Draw, SampledToken
from tandem.types import SamplingSpec

BLOCK_SIZE = 16
GREEDY = SamplingSpec(temperature=0.0)
TINY = ModelConfig("llama", 64, 96, 2, 4, 2, 16, 160, 512, 1e-5, 1e4)
SMALLEST = replace(TINY, vocab_size=512)  # with room for one token a byte
MODELS: Mapping[str, ModelConfig] = {
    "llama-3-8b": ModelConfig("llama", 4096, 14336, 32, 32, 8, 128, 128256, 8192, 1e-5, 5e5),
    "qwen2.5-7b": ModelConfig("qwen2", 3584, 18944, 28, 28, 4, 128, 152064, 32768, 1e-6, 1e6, attention_bias=True),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and its steps over a KV cache of random numbers."""

    config: ModelConfig
    weights: Mapping[str, torch.Tensor]
    kv_cache: torch.Tensor
    steps: CudaSteps


def model_named(bench: Bench, name: str) -> ModelConfig:
    """Its shape, or in a dry run a tiny one's."""
    return TINY if bench.is_dry else MODELS[name]


def random_weights(config: ModelConfig, device: torch.device, seed: int = 1) -> dict[str, torch.Tensor]:
    """Made where they are used: norms 1, biases 0, all else normal, so that rows keep their size."""
    generator = torch.Generator(device).manual_seed(seed)
    weights = {}
    for parameter in get_family(config.family).parameters(config):
        tensor = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
        if len(parameter.shape) > 1:
            tensor.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
        else:
            tensor.fill_(1.0 if "norm" in parameter.name else 0.0)
        weights[parameter.name] = tensor
    return weights


def open_subject(bench: Bench, config: ModelConfig, num_tokens: int, stream: StepStream) -> Subject:
    """With a cache for so many tokens."""
    num_blocks = num_blocks_for(num_tokens, BLOCK_SIZE)
    shape = (config.num_layers, 2, num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
    kv_cache = torch.empty(shape, dtype=torch.bfloat16, device=bench.device).normal_()
    weights = random_weights(config, bench.device)
    bench.wait()  # another stream may compute with them
    return Subject(config, weights, kv_cache, open_steps(config, weights, kv_cache, stream))


def open_steps(
    config: ModelConfig, weights: Mapping[str, Weight], kv_cache: torch.Tensor, stream: StepStream
) -> CudaSteps:
    """As a phase on a GPU has them; elsewhere rehearsed."""
    build = partial(get_family(config.family).build, config, weights)
    if kv_cache.is_cuda:
        return open_cuda_steps(build, kv_cache, config.vocab_size, stream)
    kernels = padded_kernels(torch_kernels())

    def runner_for(_: int) -> ModelRunner:
        return ModelRunner(build(kernels), kv_cache, BLOCK_SIZE)

    model = DeviceModel(runner_for, kv_cache.device, BLOCK_SIZE, config.vocab_size, sample_rows, draw_tokens)
    return CudaSteps(model, RehearsedGraphs())


class DecodeBatch:
    """Equal sequences that go on for ever: when their blocks are full they begin at their first context again."""

    def __init__(self, subject: Subject, batch: int, context: int, num_steps: int) -> None:
        """`context`: tokens that a sequence has with its first row; room for `num_steps` more."""
        self._steps = subject.steps
        self._context, self._num_steps, self._done = context, num_steps, 0
        each = num_blocks_for(context + num_steps, BLOCK_SIZE)
        self._block_ids = [list(range(index * each, (index + 1) * each)) for index in range(batch)]

    @staticmethod
    def num_tokens(batch: int, context: int, num_steps: int) -> int:
        """That the cache must have room for."""
        return batch * num_blocks_for(context + num_steps, BLOCK_SIZE) * BLOCK_SIZE

    def step(self) -> list[SampledToken | None]:
        """One token for each."""
        position = self._context - 1 + self._done % self._num_steps
        self._done += 1
        draw = Draw(GREEDY, position + 1, (), ())
        return self._steps.execute(
            [SequenceRows([7], position, block_ids) for block_ids in self._block_ids], [draw] * len(self._block_ids)
        )


def prefill_step(subject: Subject, batch: int, length: int) -> list[SampledToken | None]:
    """Whole prompts in one step, a token for each."""
    each = num_blocks_for(length, BLOCK_SIZE)
    vocab_size = subject.config.vocab_size
    rows = [
        SequenceRows(
            [(index + token * 31) % vocab_size for token in range(length)], 0, range(index * each, (index + 1) * each)
        )
        for index in range(batch)
    ]
    return subject.steps.execute(rows, [Draw(GREEDY, length, (), ())] * batch)

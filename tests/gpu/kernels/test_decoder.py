"""A whole decoder on the Triton kernels against the same weights on the torch kernels in float32."""

import dataclasses
from collections.abc import Mapping

import pytest
import torch

from kernels.gpu.kernels import gpu_kernels
from kernels.table import Kernels, torch_kernels
from tandem.model.batch import ForwardBatch, SequenceRows, prepare_batch
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tests.support.gpu import INTERPRETED

pytestmark = pytest.mark.gpu

QWEN3 = ModelConfig("qwen3", 64, 96, 2, 4, 2, 16, 160, 512, 1e-5, 1e4)
CONFIGS = {
    "qwen3": QWEN3,
    "mistral, window": dataclasses.replace(QWEN3, family="mistral", sliding_window=11),
}
DTYPE = torch.float16 if INTERPRETED else torch.bfloat16  # the interpreter cuts bfloat16 where a GPU rounds


def random_weights(config: ModelConfig, dtype: torch.dtype) -> Mapping[str, torch.Tensor]:
    """Of values that bfloat16 has; norms near one."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for parameter in get_family(config.family).parameters(config):
        drawn = torch.randn(parameter.shape, generator=generator)
        scaled = 1 + 0.1 * drawn if "norm" in parameter.name else drawn * parameter.shape[-1] ** -0.5
        weights[parameter.name] = scaled.bfloat16().to(dtype)
    return weights


def on(device: torch.device, batch: ForwardBatch) -> ForwardBatch:
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    tensors = {name: value.to(device) for name, value in fields.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(batch, **tensors)


def logits(config: ModelConfig, kernels: Kernels, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Of two prompts, then of a decode row, a chunk in the middle of a prompt, and a new prompt in one step."""
    weights = {name: weight.to(device) for name, weight in random_weights(config, dtype).items()}
    decoder = get_family(config.family).build(config, weights, kernels)
    cache = torch.full((config.num_layers, 2, 24, 16, config.num_kv_heads, config.head_dim), float("nan"))
    cache = cache.to(device, dtype)
    blocks = [list(range(first, 24, 3)) for first in range(3)]
    steps = [
        [SequenceRows(range(1, 38), 0, blocks[0]), SequenceRows(range(5, 10), 0, blocks[1])],
        [SequenceRows([3], 37, blocks[0]), SequenceRows([4, 8, 2], 5, blocks[1]), SequenceRows([9, 9], 0, blocks[2])],
        [SequenceRows([6], 38, blocks[0]), SequenceRows([7], 8, blocks[1])],
    ]
    return torch.cat(
        [decoder.logits(decoder.hidden_states(on(device, prepare_batch(rows, 16)), cache)).cpu() for rows in steps]
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_as_near_to_float32_as_torch_is(device: torch.device, config: ModelConfig) -> None:
    cpu = torch.device("cpu")
    exact = logits(config, torch_kernels(), torch.float32, cpu)
    theirs = logits(config, torch_kernels(), DTYPE, cpu)
    ours = logits(config, gpu_kernels(num_sms=8), DTYPE, device)
    assert exact.std() > 0.3
    assert (ours - exact).abs().mean() <= 1.5 * (theirs - exact).abs().mean()
    torch.testing.assert_close(ours, exact, atol=0.2, rtol=0)

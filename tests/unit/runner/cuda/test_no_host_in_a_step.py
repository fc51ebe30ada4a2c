"""A captured step computes on the device alone: on torch's `meta` device, whose tensors have no value that a host could
wait for, it goes through, and no tensor of the host takes part. Launches are recorded instead of made.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.gpu.kernels import gpu_kernels
from kernels.gpu.sample_tokens import sample_tokens
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tandem.runner.cuda.buckets import Bucket
from tandem.runner.cuda.inputs import make_inputs
from tandem.runner.model_runner import ModelRunner
from tests.support.compiled_kernels import recorded_launches
from tests.support.gpu import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: launches are not recorded")

META = torch.device("meta")
BLOCK_SIZE, NUM_LAYERS, VOCAB = 16, 3, 9000
A_LAYER = ["_add_rms_norm", "_rotate_and_store", "_attend_rows", "_unite_parts", "_add_rms_norm", "_silu_mul"]
SAMPLING = ["_adjust", "_kept_floor", "_chunk_masses", "_draw"]


class DeviceAlone(TorchDispatchMode):
    """Refuses operators with a tensor of the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            assert not isinstance(leaf, torch.Tensor) or leaf.device == META, func
        return result


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def runner(request: pytest.FixtureRequest) -> ModelRunner:
    biased = request.param == "qwen2"
    config = ModelConfig(request.param, 64, 96, NUM_LAYERS, 4, 2, 16, VOCAB, 512, 1e-5, 1e4, attention_bias=biased)
    family = get_family(config.family)
    weights = {
        parameter.name: torch.empty(parameter.shape, dtype=torch.bfloat16, device=META)
        for parameter in family.parameters(config)
    }
    shape = (NUM_LAYERS, 2, 100, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
    cache = torch.empty(shape, dtype=torch.bfloat16, device=META)
    return ModelRunner(family.build(config, weights, gpu_kernels(num_sms=40)), cache, BLOCK_SIZE)


def test_a_decode_step_neither_waits_for_values_nor_brings_any(runner: ModelRunner) -> None:
    inputs = make_inputs(Bucket(num_rows=4, num_blocks=64), BLOCK_SIZE, VOCAB, META)
    with recorded_launches() as launches, DeviceAlone(), torch.inference_mode():
        token_ids = sample_tokens(runner.forward(inputs.batch), inputs.sampling)
    assert (token_ids.shape, token_ids.device, token_ids.dtype) == ((4,), META, torch.int64)
    assert [launch.name for launch in launches] == [*NUM_LAYERS * A_LAYER, "_add_rms_norm", *SAMPLING]


def test_the_check_sees_both() -> None:
    with DeviceAlone(), pytest.raises(AssertionError):
        torch.tensor([1], device=META) + torch.tensor([1])
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(1, device=META).item()

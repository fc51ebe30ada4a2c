"""Puts the steps of a GPU together: kernels for each number of SMs, device sampling, graphs."""

from collections.abc import Callable

import torch

from kernels.choice import choose_kernels
from kernels.table import Kernels
from tandem.model.family import Decoder
from tandem.runner.cuda.graphs import StepStream, TorchGraphs
from tandem.runner.cuda.steps import CudaSteps, DeviceModel
from tandem.runner.model_runner import ModelRunner


def open_cuda_steps(
    build: Callable[[Kernels], Decoder], kv_cache: torch.Tensor, vocab_size: int, stream: StepStream
) -> CudaSteps:
    """Over a KV cache on a GPU. `build` makes the decoder of a set of kernels. UnsupportedModelError, DeviceError."""
    device, block_size = kv_cache.device, kv_cache.shape[3]

    def runner_for(num_sms: int) -> ModelRunner:
        chosen = choose_kernels(kv_cache.dtype, device, num_sms)
        return ModelRunner(build(chosen.kernels), kv_cache, block_size)

    kernels = choose_kernels(kv_cache.dtype, device).kernels
    from kernels.gpu.sample_tokens import sample_tokens  # machines without a GPU need no Triton

    model = DeviceModel(runner_for, device, block_size, vocab_size, sample_tokens, kernels.draw_tokens)
    return CudaSteps(model, TorchGraphs(device, stream))

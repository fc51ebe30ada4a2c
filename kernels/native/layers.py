"""All layers of a stack in one call of the library; the pointers to the weights are prepared once."""

from collections.abc import Sequence
from ctypes import CDLL, byref

import torch

from kernels.layer_stack import LayerStack, LayerWeights, LinearWeight, StepInputs
from kernels.native.operators import NativePlan
from kernels.native.structs import Angles, Heads, Layer, Stack, StackStep, Weight
from kernels.native.weights import checked, weight_argument

SHORT_ROWS = 64  # a step of no more is not worth a pause


class NativeLayers:
    """A `kernels.layer_stack.RunLayers`. Its scratch memory grows to the largest step.

    A step that may pause runs layer by layer: what a call leaves in `embedded` is the residual that the next one needs.
    """

    def __init__(self, library: CDLL, stack: LayerStack) -> None:
        self._library = library
        self._weights = stack  # what the pointers point to
        layers = [_layer(layer) for layer in stack.layers]
        self._stack = _stack(stack, layers)
        self._one_by_one = [_stack(stack, [layer]) for layer in layers]
        self._scratch = torch.empty(0, dtype=torch.bfloat16)

    def __call__(self, embedded: torch.Tensor, step: StepInputs, kv_cache: torch.Tensor) -> torch.Tensor:
        """See `RunLayers`."""
        hidden = torch.empty_like(embedded)
        arguments = self._arguments(embedded, hidden, step, checked(kv_cache))
        if step.pause is None or embedded.shape[0] <= SHORT_ROWS:
            self._library.tandem_run_stack(byref(self._stack), byref(arguments))
            return hidden
        for layer, layer_kv in zip(self._one_by_one, kv_cache, strict=True):
            arguments.kv_cache = layer_kv.data_ptr()
            self._library.tandem_run_stack(byref(layer), byref(arguments))
            step.pause()
        return hidden

    def _arguments(
        self, embedded: torch.Tensor, hidden: torch.Tensor, step: StepInputs, kv_cache: torch.Tensor
    ) -> StackStep:
        plan: NativePlan = step.attention
        return StackStep(
            plan.shape,
            embedded.shape[0],
            Angles(step.rotary.cos.data_ptr(), step.rotary.sin.data_ptr()),
            checked(step.slot_mapping, torch.int64).data_ptr(),
            kv_cache.data_ptr(),
            kv_cache[0, 0].numel(),
            checked(embedded).data_ptr(),
            hidden.data_ptr(),
            self._scratch_for(embedded.shape[0]).data_ptr(),
        )

    def _scratch_for(self, num_rows: int) -> torch.Tensor:
        needed = self._library.tandem_stack_scratch(byref(self._stack), num_rows)
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.bfloat16)
        return self._scratch


def _stack(stack: LayerStack, layers: Sequence[Layer]) -> Stack:
    """Some of its layers, and its norm."""
    return Stack(
        (Layer * len(layers))(*layers),
        len(layers),
        checked(stack.final_norm).data_ptr(),
        Heads(stack.num_heads, stack.num_kv_heads, stack.head_dim),
        stack.final_norm.numel(),
        stack.layers[0].down.weight.shape[1],
        stack.rms_norm_eps,
        stack.scale,
    )


def _layer(layer: LayerWeights) -> Layer:
    return Layer(
        checked(layer.attention_norm).data_ptr(),
        checked(layer.mlp_norm).data_ptr(),
        checked(layer.head_norm).data_ptr() if layer.head_norm is not None else None,
        _weight(layer.qkv),
        _weight(layer.attention_output),
        _weight(layer.gate_up),
        _weight(layer.down),
    )


def _weight(linear: LinearWeight) -> Weight:
    return weight_argument(linear.weight, linear.bias)

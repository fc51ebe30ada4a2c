"""Every way to store and compute a model, against float32 by torch, on the same tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from bench.accuracy.divergence import score_window, summarise
from bench.accuracy.model import TextModel, load_weights
from bench.accuracy.result import VariantAccuracy
from bench.accuracy.windows import Window, write
from kernels.choice import choose_kernels
from kernels.quantised import Weight
from kernels.table import Kernels, torch_kernels
from tandem.model.quantisation import NONE, QUANTIZATIONS
from tandem.model.source import ModelSource


@dataclass(frozen=True, slots=True)
class AccuracyPlan:
    """`token_windows` are read; without them the reference writes `num_windows` of its own."""

    source: ModelSource
    num_windows: int
    window_tokens: int
    token_windows: Sequence[Window] = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """`dtype` as the fingerprint names it."""

    dtype: str
    weights: Mapping[str, Weight]
    kernels: Kernels


def measure(plan: AccuracyPlan, advance: Callable[[], None]) -> tuple[VariantAccuracy, ...]:
    """`advance` is called once a window, and once a token that is written. ModelFormatError, DeviceError."""
    reference_weights = load_weights(plan.source, "float32", NONE)
    reference = Variant("float32", reference_weights, torch_kernels())
    windows = plan.token_windows or _written(plan, reference, advance)
    model = _model(plan, reference, 1)
    expected = [model.logits([window], 0) for window in windows]
    return tuple(
        _accuracy(plan, variant, windows, expected, advance) for variant in (reference, *_variants(plan.source))
    )


def _variants(source: ModelSource) -> Iterator[Variant]:
    """The kernels that serve; of quantised weights also torch's, which round no activations."""
    serving = choose_kernels(torch.bfloat16).kernels
    for quantization in QUANTIZATIONS:
        weights = load_weights(source, "bfloat16", quantization)
        dtype = "bfloat16" if quantization == NONE else f"bfloat16+{quantization}"
        yield Variant(dtype, weights, serving)
        if serving.name != torch_kernels().name:
            yield Variant(dtype, weights, torch_kernels())


def _written(plan: AccuracyPlan, reference: Variant, advance: Callable[[], None]) -> list[Window]:
    model = _model(plan, reference, plan.num_windows)
    return write(model, plan.source.config.bos_token_id or 0, plan.num_windows, plan.window_tokens, advance)


def _model(plan: AccuracyPlan, variant: Variant, num_sequences: int) -> TextModel:
    return TextModel(
        plan.source.config,
        variant.weights,
        variant.kernels,
        dtype=torch.float32 if variant.dtype == "float32" else torch.bfloat16,
        num_sequences=num_sequences,
        max_tokens=plan.window_tokens,
    )


def _accuracy(
    plan: AccuracyPlan,
    variant: Variant,
    windows: Sequence[Window],
    expected: Sequence[torch.Tensor],
    advance: Callable[[], None],
) -> VariantAccuracy:
    model = _model(plan, variant, 1)
    scores = []
    for window, reference in zip(windows, expected, strict=True):
        scores.append(score_window(reference, model.logits([window], 0), window))
        advance()
    weight_bytes = sum(weight.nbytes for weight in variant.weights.values())
    return VariantAccuracy(variant.dtype, variant.kernels.name, weight_bytes, summarise(scores))

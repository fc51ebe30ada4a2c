"""How cost grows, as plots."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import DPI, new_figure
from bench.micro.table import MicroResult, ServiceMemory, StepShape, StepTime
from tandem.types import Phase

MEGA = 1e6
Axis = Callable[[StepShape], int]
MEMORY_PARTS: Mapping[str, Callable[[ServiceMemory], int]] = {
    "own": lambda service: service.pss_anonymous_bytes,
    "files": lambda service: service.pss_bytes - service.pss_anonymous_bytes - service.pss_shared_bytes,
    "segments": lambda service: service.pss_shared_bytes,
}


def plot_growth(result: MicroResult, path: Path) -> Path:
    """Decode steps, by the most threads: over the context, and over the batch. Dotted: floors."""
    num_threads = max((step.shape.num_threads for step in result.steps), default=0)
    steps = [
        step for step in result.steps if step.shape.phase is Phase.DECODE and step.shape.num_threads == num_threads
    ]
    figure = new_figure(2)
    over_context, over_batch = figure.subplots(1, 2)
    _lines(over_context, steps, lambda shape: shape.num_context_tokens, lambda shape: shape.num_sequences)
    _lines(over_batch, steps, lambda shape: shape.num_sequences, lambda shape: shape.num_context_tokens)
    over_context.set(xlabel="context of each sequence, tokens", title=f"decode step, {num_threads} threads, by batch")
    over_batch.set(xlabel="sequences", title="by context")
    figure.savefig(path, dpi=DPI)
    return path


def plot_memory(result: MicroResult, path: Path) -> Path:
    """Each service's PSS and its parts; the segments against their formulas."""
    figure = new_figure(2)
    by_service, by_segment = figure.subplots(1, 2)
    _stacked(by_service, result.services)
    names = [segment.segment for segment in result.segments]
    by_segment.bar(names, [segment.size_bytes / MEGA for segment in result.segments], label="size")
    formulas = [segment.formula_bytes / MEGA for segment in result.segments]
    by_segment.plot(names, formulas, linestyle="", marker="_", markersize=40, color="black", label="formula")
    for axes, label in ((by_service, "PSS, MB"), (by_segment, "MB")):
        axes.set(ylabel=label)
        axes.legend()
    figure.savefig(path, dpi=DPI)
    return path


def _stacked(axes: Any, services: Sequence[ServiceMemory]) -> None:
    bottom = [0.0] * len(services)
    for label, part in MEMORY_PARTS.items():
        heights = [part(service) / MEGA for service in services]
        axes.bar([service.service for service in services], heights, bottom=bottom, label=label)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]


def _lines(axes: Any, steps: Sequence[StepTime], along: Axis, by: Axis) -> None:
    for value in sorted({by(step.shape) for step in steps}):
        chosen = sorted((step for step in steps if by(step.shape) == value), key=lambda step: along(step.shape))
        places = [along(step.shape) for step in chosen]
        (line,) = axes.plot(places, [step.median_ms for step in chosen], marker="o", label=str(value))
        axes.plot(places, [step.floor_ms for step in chosen], linestyle=":", color=line.get_color())
    axes.set(ylabel="ms", yscale="log")
    axes.set_xscale("log", base=2)
    if steps:
        axes.legend()

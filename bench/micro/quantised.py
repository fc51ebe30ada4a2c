"""``python -m bench.micro.quantised``: what each ``memd.quantization`` takes in the native kernels, beside bfloat16.

All of them compute the same case in turn, in one process, so that a disturbance falls on all; medians are compared.
Weights are random, of SmolLM2-135M's shape.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from bench.micro.floors import FloorProbes
from bench.micro.kernels import BLOCK_SIZE, CONTEXT, MODEL, MS, NATIVE_DTYPE, PROMPT
from bench.results import provenance
from kernels.native.kernels import native_kernels
from kernels.native.levels import NativeUnavailableError
from kernels.quantised import Weight, quantise
from kernels.table import Kernels
from tandem.model.batch import SequenceRows
from tandem.model.family import Parameter
from tandem.model.quantisation import NONE, QUANTIZATIONS
from tandem.model.registry import get_family
from tandem.runner.model_runner import ModelRunner

DECODE_BATCHES = (1, 8, 16)
LINEAR_ROWS = (1, 8, 16, 32, 512)


@dataclass(frozen=True, slots=True)
class Contender:
    """A model stored in one way."""

    quantization: str
    kernels: Kernels
    weights: Mapping[str, Weight]

    def linears(self) -> list[Weight]:
        """Of every layer, in order."""
        return [weight for name, weight in self.weights.items() if name.endswith("proj.weight")]


@dataclass(frozen=True, slots=True)
class Case:
    """`run` prepares, and what it returns is timed; `read_bytes` and `flops` are the least that must be done."""

    name: str
    run: Callable[[Contender], Callable[[], object]]
    read_bytes: Callable[[Contender], int]
    flops: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians of a case by quantization. Floors: reading the weights once, or multiplying them in bfloat16."""

    case: str
    ms: Mapping[str, float]
    floor_ms: Mapping[str, float]


def contenders(kernels: Kernels) -> list[Contender]:
    """The same random weights in every form."""
    torch.manual_seed(0)
    parameters = get_family(MODEL.family).parameters(MODEL)
    plain = {each.name: torch.randn(each.shape).to(NATIVE_DTYPE) for each in parameters}
    return [Contender(name, kernels, _stored(parameters, plain, name)) for name in QUANTIZATIONS]


def cases() -> Iterator[Case]:
    """Products first."""
    for num_rows in LINEAR_ROWS:
        yield _linears(num_rows)
    kv_shape = (MODEL.num_layers, 2, max(DECODE_BATCHES) * CONTEXT // BLOCK_SIZE, BLOCK_SIZE)
    kv_cache = torch.randn(*kv_shape, MODEL.num_kv_heads, MODEL.head_dim).to(NATIVE_DTYPE)
    for batch in DECODE_BATCHES:
        yield _step(f"step, decode {batch} x {CONTEXT}", kv_cache, batch, 1, CONTEXT)
    yield _step(f"step, prefill {PROMPT}", kv_cache, 1, PROMPT, PROMPT)


@torch.inference_mode()
def measure(num_threads: int, num_rounds: int) -> list[Timing]:
    """NativeUnavailableError."""
    torch.set_num_threads(num_threads)
    subjects, probes = contenders(native_kernels()), FloorProbes(NATIVE_DTYPE)
    reads, gemms, timings = [], [], []
    for case in cases():
        timings.append((case, _times_ms(case, subjects, num_rounds)))
        reads.append(probes.read_gb_per_s())
        gemms.append(probes.gemm_gflop_per_s())
    read, gemm = median(reads), median(gemms)
    return [Timing(case.name, ms, _floors_ms(case, subjects, read, gemm)) for case, ms in timings]


def _times_ms(case: Case, subjects: Sequence[Contender], num_rounds: int) -> dict[str, float]:
    """After one round that is not counted."""
    prepared = [case.run(subject) for subject in subjects]
    rounds = [[_ms(run) for run in prepared] for _ in range(num_rounds + 1)][1:]
    medians = (median(times) for times in zip(*rounds, strict=True))
    return dict(zip((subject.quantization for subject in subjects), medians, strict=True))


def _floors_ms(case: Case, subjects: Sequence[Contender], read: float, gemm: float) -> dict[str, float]:
    """By the medians of the whole run, in GB/s and GFLOP/s."""
    return {each.quantization: max(case.read_bytes(each) / read, case.flops / gemm) / 1e6 for each in subjects}


def _ms(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return (time.perf_counter() - started_s) * MS


def _linears(num_rows: int) -> Case:
    """All of the layers'."""

    def prepare(contender: Contender) -> Callable[[], object]:
        linears = contender.linears()
        inputs = {width: torch.randn(num_rows, width).to(NATIVE_DTYPE) for width in {each.shape[1] for each in linears}}
        return lambda: [contender.kernels.linear(inputs[each.shape[1]], each) for each in linears]

    return Case(f"linears, {num_rows} rows", prepare, _linear_bytes, 2 * _linear_elements() * num_rows)


def _step(name: str, kv_cache: torch.Tensor, batch: int, num_rows: int, context: int) -> Case:
    """From rows to logits."""
    blocks = context // BLOCK_SIZE
    rows = [
        SequenceRows([7] * num_rows, context - num_rows, range(index * blocks, (index + 1) * blocks))
        for index in range(batch)
    ]
    kv_bytes = MODEL.num_layers * 2 * MODEL.num_kv_heads * MODEL.head_dim * NATIVE_DTYPE.itemsize * batch * context

    def prepare(contender: Contender) -> Callable[[], object]:
        decoder = get_family(MODEL.family).build(MODEL, contender.weights, contender.kernels)
        runner = ModelRunner(decoder, kv_cache, BLOCK_SIZE)
        return lambda: runner.execute(rows)

    def read_bytes(contender: Contender) -> int:
        return sum(weight.nbytes for weight in contender.weights.values()) + kv_bytes

    head = MODEL.vocab_size * MODEL.hidden_size
    return Case(name, prepare, read_bytes, 2 * batch * (_linear_elements() * num_rows + head))


def _stored(
    parameters: Sequence[Parameter], plain: Mapping[str, torch.Tensor], quantization: str
) -> Mapping[str, Weight]:
    formats = QUANTIZATIONS[quantization]
    return {
        each.name: quantise(plain[each.name], formats[each.kind]) if each.kind in formats else plain[each.name]
        for each in parameters
    }


def _linear_bytes(contender: Contender) -> int:
    return sum(weight.nbytes for weight in contender.linears())


def _linear_elements() -> int:
    parameters = get_family(MODEL.family).parameters(MODEL)
    return sum(each.shape[0] * each.shape[1] for each in parameters if each.name.endswith("proj.weight"))


def table(timings: Sequence[Timing], num_threads: int) -> Table:
    """Milliseconds, and how many floors that is; a ratio above 1 says that quantised is faster than plain."""
    quantised = [name for name in QUANTIZATIONS if name != NONE]
    view = Table("case", *QUANTIZATIONS, *(f"none / {name}" for name in quantised), title=f"{num_threads} threads, ms")
    view.add_column("over floors")
    for timing in timings:
        ratios = (timing.ms[NONE] / timing.ms[name] for name in quantised)
        over = (timing.ms[name] / timing.floor_ms[name] for name in QUANTIZATIONS)
        view.add_row(
            timing.case,
            *(f"{timing.ms[name]:.2f}" for name in QUANTIZATIONS),
            *(f"{ratio:.2f}" for ratio in ratios),
            " / ".join(f"{value:.2f}" for value in over),
        )
    return view


def main(arguments: Sequence[str]) -> int:
    """1 where there are no native kernels to measure."""
    description = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bench.micro.quantised", description=description)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    console, results = Console(), {}
    try:
        for num_threads in options.threads:
            timings = measure(num_threads, options.rounds)
            console.print(table(timings, num_threads))
            results[num_threads] = [asdict(timing) for timing in timings]
    except NativeUnavailableError as error:
        console.print(f"nothing to measure: {error}")
        return 1
    if options.json:
        options.json.write_text(json.dumps({"provenance": asdict(provenance()), "threads": results}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

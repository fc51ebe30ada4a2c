"""``python -m bench.micro.kernels``: native kernels against the torch ones, operator by operator and step by step.

Both sets compute the same case in turn, in one process, so that a disturbance falls on both; medians are compared.
Weights are random, of SmolLM2-135M's shape; operators are run once for each of its layers, on that layer's own memory.
``--level`` names an instruction set other than the best one here, ``--torch-dtype`` what torch computes in.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from bench.micro.floors import FloorProbes
from bench.results import provenance
from kernels.layer_stack import LinearWeight
from kernels.native.kernels import native_kernels
from kernels.native.levels import LEVELS, Level, NativeUnavailableError
from kernels.rotary import inverse_frequencies, rotary_table
from kernels.table import Kernels, torch_kernels
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tandem.runner.model_runner import ModelRunner

MODEL = ModelConfig("llama", 576, 1536, 30, 9, 3, 64, 49152, 8192, 1e-5, 1e5, tie_word_embeddings=True)
NATIVE_DTYPE = torch.bfloat16
TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
BLOCK_SIZE = 16
DECODE_BATCHES = (1, 8, 16, 32)
CONTEXT = 256
PROMPT = 512
LINEAR_ROWS = (1, 8, 16, 32, 64, 512)
MS = 1e3


@dataclass(frozen=True, slots=True)
class Rivals:
    """Who is compared."""

    levels: Sequence[Level]  # of the native kernels, the first that can be had
    torch_dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians of a case. The floor is of the same run: the medians of reading and multiplying between its cases."""

    case: str
    torch_ms: float
    native_ms: float
    native_one_by_one_ms: float  # operators called from Python one by one; of an operator, the same
    floor_ms: float


class Subject:
    """Weights and a cache for all cases, the same numbers in every dtype but for its rounding."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        family = get_family(MODEL.family)
        self.dtype = dtype
        self.weights = {p.name: torch.randn(p.shape).to(dtype) for p in family.parameters(MODEL)}
        num_blocks = max(DECODE_BATCHES) * -(-CONTEXT // BLOCK_SIZE)
        shape = (MODEL.num_layers, 2, num_blocks, BLOCK_SIZE, MODEL.num_kv_heads, MODEL.head_dim)
        self.kv_cache = torch.randn(shape).to(dtype)

    def linears(self) -> list[LinearWeight]:
        """Of every layer, in order."""
        return [LinearWeight(weight) for name, weight in self.weights.items() if name.endswith("proj.weight")]

    def runner(self, kernels: Kernels) -> ModelRunner:
        """The whole model."""
        decoder = get_family(MODEL.family).build(MODEL, self.weights, kernels)
        return ModelRunner(decoder, self.kv_cache, BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class Contender:
    """A set of kernels and what it computes with."""

    kernels: Kernels
    subject: Subject


@dataclass(frozen=True, slots=True)
class Case:
    """What each contender does; `read_bytes` and `flops` are the least that bfloat16 must be read and multiplied."""

    name: str
    run: Callable[[Contender], Callable[[], object]]  # prepares; the result is what is timed
    read_bytes: float = 0.0
    flops: float = 0.0


def cases() -> Iterator[Case]:
    """Operators first."""
    for num_rows in LINEAR_ROWS:
        yield _linears(num_rows)
    for batch in DECODE_BATCHES:
        yield _attention(f"attention, decode {batch} x {CONTEXT}", batch, 1, CONTEXT)
    yield _attention(f"attention, prefill {PROMPT}", 1, PROMPT, PROMPT)
    for num_rows in (16, PROMPT):
        yield _between(num_rows)
    for batch in DECODE_BATCHES:
        yield _step(f"step, decode {batch} x {CONTEXT}", batch, 1, CONTEXT)
    yield _step(f"step, prefill {PROMPT}", 1, PROMPT, PROMPT)


def measure(rivals: Rivals, num_threads: int, num_rounds: int) -> list[Timing]:
    """NativeUnavailableError."""
    torch.set_num_threads(num_threads)
    native, subject = native_kernels(rivals.levels), Subject(NATIVE_DTYPE)
    theirs = subject if rivals.torch_dtype == NATIVE_DTYPE else Subject(rivals.torch_dtype)
    contenders = (
        Contender(torch_kernels(), theirs),
        Contender(native, subject),
        Contender(replace(native, fuse_layers=None), subject),
    )
    probes = FloorProbes(rivals.torch_dtype)
    measured = [_measured(case, contenders, probes, num_rounds) for case in cases()]
    read = median(each.read_gb_per_s for each in measured)
    gemm = median(each.gemm_gflop_per_s for each in measured)
    return [each.timing(read, gemm) for each in measured]


@dataclass(frozen=True, slots=True)
class _Measured:
    """A case's medians, and what the machine could do meanwhile."""

    case: Case
    set_ms: tuple[float, ...]
    read_gb_per_s: float
    gemm_gflop_per_s: float

    def timing(self, read_gb_per_s: float, gemm_gflop_per_s: float) -> Timing:
        """With floors of the whole run, of which a case's own are too few."""
        torch_ms, native_ms, one_by_one_ms = self.set_ms
        floor_ms = max(self.case.read_bytes / read_gb_per_s, self.case.flops / gemm_gflop_per_s) / 1e6
        return Timing(self.case.name, torch_ms, native_ms, one_by_one_ms, floor_ms)


@torch.inference_mode()
def _measured(case: Case, contenders: Sequence[Contender], probes: FloorProbes, num_rounds: int) -> _Measured:
    """After one round that is not counted."""
    prepared = [case.run(contender) for contender in contenders]
    rounds = [[_ms(run) for run in prepared] for _ in range(num_rounds + 1)][1:]
    set_ms = tuple(median(times) for times in zip(*rounds, strict=True))
    return _Measured(case, set_ms, probes.read_gb_per_s(), probes.gemm_gflop_per_s())


def _ms(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return (time.perf_counter() - started_s) * MS


def _linears(num_rows: int) -> Case:
    """All of the layers'."""

    def prepare(contender: Contender) -> Callable[[], object]:
        linears, dtype = contender.subject.linears(), contender.subject.dtype
        inputs = {width: torch.randn(num_rows, width).to(dtype) for width in {each.weight.shape[1] for each in linears}}
        return lambda: [contender.kernels.linear(inputs[each.weight.shape[1]], each.weight) for each in linears]

    size = _linear_elements()
    return Case(f"linears, {num_rows} rows", prepare, size * NATIVE_DTYPE.itemsize, 2 * size * num_rows)


def _attention(name: str, batch: int, num_rows: int, context: int) -> Case:
    """In all layers, the plan included."""
    blocks = -(-context // BLOCK_SIZE)
    tables = torch.arange(batch * blocks).view(batch, blocks)
    starts, contexts = torch.arange(batch + 1) * num_rows, torch.full((batch,), context)
    drawn = torch.randn(batch * num_rows, MODEL.num_heads, MODEL.head_dim)

    def prepare(contender: Contender) -> Callable[[], object]:
        kernels, subject = contender.kernels, contender.subject
        query = drawn.to(subject.dtype)

        def run() -> None:
            plan = kernels.plan_attention(
                tables, starts, contexts, block_size=BLOCK_SIZE, num_kv_heads=MODEL.num_kv_heads
            )
            for keys, values in subject.kv_cache.unbind(0):
                kernels.paged_attention(query, keys, values, plan, scale=MODEL.head_dim**-0.5)

        return run

    keys_seen = batch * num_rows * (context - (num_rows - 1) / 2)
    flops = 4 * keys_seen * MODEL.num_heads * MODEL.head_dim * MODEL.num_layers
    return Case(name, prepare, batch * context * _kv_token_bytes(), flops)


def _between(num_rows: int) -> Case:
    """What lies between products: norms, rotation with store, gate; of all layers."""
    drawn_heads = torch.randn(num_rows, MODEL.num_heads + 2 * MODEL.num_kv_heads, MODEL.head_dim)
    table = rotary_table(inverse_frequencies(MODEL.head_dim, MODEL.rope_theta), torch.arange(num_rows))
    slots = torch.arange(num_rows)

    def prepare(contender: Contender) -> Callable[[], object]:
        kernels, subject = contender.kernels, contender.subject
        hidden = torch.randn(num_rows, MODEL.hidden_size).to(subject.dtype)
        gate_up = torch.randn(num_rows, 2 * MODEL.intermediate_size).to(subject.dtype)
        weight, heads = torch.ones(MODEL.hidden_size, dtype=subject.dtype), drawn_heads.to(subject.dtype)

        def run() -> None:
            for keys, values in subject.kv_cache.unbind(0):
                kernels.add_rms_norm(hidden, hidden, weight, MODEL.rms_norm_eps)
                kernels.add_rms_norm(hidden, hidden, weight, MODEL.rms_norm_eps)
                kernels.rotate_and_store(heads, table, None, key_cache=keys, value_cache=values, slot_mapping=slots)
                kernels.silu_mul(gate_up)

        return run

    return Case(f"norms, rotation, gate, {num_rows} rows", prepare)


def _step(name: str, batch: int, num_rows: int, context: int) -> Case:
    """From rows to logits."""
    blocks = -(-context // BLOCK_SIZE)
    rows = [
        SequenceRows([7] * num_rows, context - num_rows, range(index * blocks, (index + 1) * blocks))
        for index in range(batch)
    ]
    layers, head = _linear_elements(), MODEL.vocab_size * MODEL.hidden_size

    def prepare(contender: Contender) -> Callable[[], object]:
        runner = contender.subject.runner(contender.kernels)
        return lambda: runner.execute(rows)

    read_bytes = (layers + head) * NATIVE_DTYPE.itemsize + batch * context * _kv_token_bytes()
    return Case(name, prepare, read_bytes, 2 * batch * (layers * num_rows + head))


def _linear_elements() -> int:
    """Of the weights of all layers' linears."""
    parameters = get_family(MODEL.family).parameters(MODEL)
    return sum(prod(each.shape) for each in parameters if each.name.endswith("proj.weight"))


def _kv_token_bytes() -> int:
    return MODEL.num_layers * 2 * MODEL.num_kv_heads * MODEL.head_dim * NATIVE_DTYPE.itemsize


def table(timings: Sequence[Timing], title: str) -> Table:
    """Ratios above 1 say that native is faster."""
    view = Table(title=title)
    for heading in ("case", "torch", "native", "one by one", "torch / native", "floor", "native / floor"):
        view.add_column(heading, justify="left" if heading == "case" else "right")
    for timing in timings:
        numbers = (timing.torch_ms, timing.native_ms, timing.native_one_by_one_ms)
        over_floor = f"{timing.native_ms / timing.floor_ms:.2f}" if timing.floor_ms else ""
        view.add_row(
            timing.case,
            *(f"{number:.2f}" for number in numbers),
            f"{timing.torch_ms / timing.native_ms:.2f}",
            f"{timing.floor_ms:.2f}" if timing.floor_ms else "",
            over_floor,
        )
    return view


def main(arguments: Sequence[str]) -> int:
    """1 where there are no native kernels to measure."""
    options = _parser().parse_args(arguments)
    rivals = Rivals(
        [level for level in LEVELS if options.level in (level.name, None)], TORCH_DTYPES[options.torch_dtype]
    )
    console, results = Console(), {}
    try:
        for num_threads in options.threads:
            timings = measure(rivals, num_threads, options.rounds)
            title = f"native kernels ({options.level or 'best level'}) against torch in {options.torch_dtype}"
            console.print(table(timings, f"{title}, {num_threads} threads, ms"))
            results[num_threads] = [asdict(timing) for timing in timings]
    except NativeUnavailableError as error:
        console.print(f"nothing to measure: {error}")
        return 1
    if options.json:
        against = {"level": options.level, "torch_dtype": options.torch_dtype}
        options.json.write_text(
            json.dumps({"provenance": asdict(provenance()), **against, "threads": results}, indent=2)
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.micro.kernels", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--level", choices=[level.name for level in LEVELS], help="default: the best one here")
    parser.add_argument("--torch-dtype", choices=TORCH_DTYPES, default="bfloat16")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

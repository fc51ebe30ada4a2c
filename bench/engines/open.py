"""Engines by name: made ready when entered, ended when left."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.deployment.local import LocalServices, Settings, run_dir, running
from bench.engines.cases import Case
from bench.engines.engine import Engine, EngineKind, EngineSpec
from bench.engines.llama_cpp import LlamaBatchedBench
from bench.engines.worker import running_worker
from tandem.config.environment import SERVICE_ENVIRONMENT

MEMD = "memd"
VLLM_SCRIPT = Path(__file__).with_name("vllm_worker.py")
VLLM_KV_GIB = "1"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What engines are made with, of whatever kind; all compute with `num_threads`."""

    model: str  # ours; peers' stand in their specs
    num_threads: int
    cases: Sequence[Case]
    settings: Settings
    llama_batched_bench: str = "llama-batched-bench"
    peer_python: str = "python3"
    vllm_eager: bool = False


@contextlib.contextmanager
def open_engine(spec: EngineSpec, options: EngineOptions) -> Iterator[Engine]:
    """Ready when entered. NotReadyError."""
    match spec.kind:
        case EngineKind.TANDEM:
            with _tandem(spec, options) as engine:
                yield engine
        case EngineKind.LLAMA_CPP:
            yield LlamaBatchedBench(options.llama_batched_bench, spec.parameter, options.num_threads)
        case EngineKind.VLLM:
            with _vllm(spec, options) as engine:
                yield engine


@contextlib.contextmanager
def _tandem(spec: EngineSpec, options: EngineOptions) -> Iterator[Engine]:
    """memd holds weights and KV, and is idle; the worker's environment is that of a phase that has the cores alone."""
    flags = dict(options.settings.get(MEMD, {}))
    if spec.parameter:
        key, _, value = spec.parameter.partition("=")
        flags[key] = value
    command = [sys.executable, "-m", "bench.engines.tandem_worker", "--threads", str(options.num_threads)]
    with run_dir() as path, running(LocalServices(path, options.model, {MEMD: flags}, (MEMD,))) as services:
        environment = {**os.environ, **SERVICE_ENVIRONMENT}
        address = ("--memd", services.socket(MEMD))
        with running_worker(spec.name, [*command, *address], environment, path / "worker.log") as worker:
            yield worker


@contextlib.contextmanager
def _vllm(spec: EngineSpec, options: EngineOptions) -> Iterator[Engine]:
    """Within one process, which spares it what its services say to one another."""
    sizes = {
        "--max-context": max(2 * (case.num_prompt_tokens + case.num_new_tokens) for case in options.cases),
        "--max-sequences": max(case.num_sequences for case in options.cases),
    }
    flags = [part for flag, value in sizes.items() for part in (flag, str(value))]
    command = [options.peer_python, str(VLLM_SCRIPT), "--model", spec.parameter, *flags]
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{options.num_threads - 1}",
        "VLLM_CPU_KVCACHE_SPACE": VLLM_KV_GIB,
    }
    eager = ["--eager"] if options.vllm_eager else []
    with (
        run_dir() as path,
        running_worker(spec.name, [*command, *eager], environment, path / "worker.log") as worker,
    ):
        yield worker

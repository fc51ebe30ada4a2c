"""What benchmarks write: JSON that names its schema and version; `bench.reading` reads it back."""

import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter

from bench.compare import Ratio
from bench.goodput import Goodput
from bench.load.metrics import Slo, Summary, tpots_ms
from bench.load.records import RequestRecord
from tandem import __version__
from tandem.errors import ConfigError

CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where and how a result came about."""

    unix_s: float
    command: tuple[str, ...]
    tandem_version: str
    processor: str
    num_cpus: int  # that this process may use
    python_version: str


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """Which workload it was; the same facts make the same requests."""

    name: str
    arrival: str
    num_requests: int
    rate_per_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of each request that succeeded, for plots."""

    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    e2e_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one deployment."""

    deployment: str
    workload: WorkloadFacts
    summary: Summary
    latencies: Latencies
    max_wait_s: float | None = None  # what its queue is to keep to; None: not known
    computed_by_replica: tuple[int, ...] = ()  # prompt tokens, warm-up's too; empty where there is one replica


@dataclass(frozen=True, slots=True)
class RunResult:
    """`tandem bench run`."""

    provenance: Provenance
    runs: tuple[Run, ...]
    schema: Literal["tandem.bench.run/1"] = "tandem.bench.run/1"


@dataclass(frozen=True, slots=True)
class CompareResult:
    """`tandem bench compare`: `ratios` are the other deployments' numbers over the first's."""

    provenance: Provenance
    runs: tuple[Run, ...]  # in the order in which they were made
    ratios: tuple[Ratio, ...]
    schema: Literal["tandem.bench.compare/2"] = "tandem.bench.compare/2"


@dataclass(frozen=True, slots=True)
class DeploymentGoodput:
    """One deployment's search."""

    deployment: str
    goodput: Goodput
    runs: tuple[Run, ...]  # one a sample and seed


@dataclass(frozen=True, slots=True)
class GoodputResult:
    """`tandem bench goodput`."""

    provenance: Provenance
    slo: Slo
    target: float
    deployments: tuple[DeploymentGoodput, ...]
    schema: Literal["tandem.bench.goodput/1"] = "tandem.bench.goodput/1"


Result = TypeVar("Result")


def provenance() -> Provenance:
    """Of this process, now."""
    return Provenance(
        unix_s=time.time(),
        command=tuple(sys.argv),
        tandem_version=__version__,
        processor=processor_name(CPU_INFO.read_text() if CPU_INFO.exists() else ""),
        num_cpus=len(os.sched_getaffinity(0)),
        python_version=platform.python_version(),
    )


def processor_name(cpu_info: str) -> str:
    """From the text of ``/proc/cpuinfo``; the machine's architecture where that does not say."""
    names = (line.partition(":")[2].strip() for line in cpu_info.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())


def latencies_of(records: Sequence[RequestRecord]) -> Latencies:
    """Of the successful ones."""
    good = [record for record in records if record.ok]
    return Latencies(
        ttft_ms=tuple(record.ttft_ms for record in good),
        tpot_ms=tuple(tpots_ms(good)),
        e2e_ms=tuple(record.e2e_ms for record in good),
    )


def write_result(path: Path, result: Result, kind: type[Result]) -> None:
    """Whole or not at all. ConfigError when it cannot be written."""
    text = TypeAdapter(kind).dump_json(result, indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        partial.write_bytes(text)
        partial.replace(path)
    except OSError as error:
        raise ConfigError("out", f"{path}: {error.strerror}") from error

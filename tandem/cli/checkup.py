"""What `tandem doctor` finds out; each finding is a line. Looks only, and starts nothing that stays."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import psutil

from tandem.cli.attach_check import AttachReport
from tandem.cli.deployment import Deployment
from tandem.cli.events import last_lines, parse_line
from tandem.cli.ports import bind_error
from tandem.cli.programs import Program, replica_dirs
from tandem.cli.sm_check import SmReport
from tandem.cli.supervision import log_path
from tandem.device.cpu.cores import available_cores
from tandem.device.cuda.gpu import GpuFacts, GpuSearch
from tandem.device.cuda.mps import MpsControl
from tandem.device.memory import MemoryExporter
from tandem.device.memory_backends import choose_exporter
from tandem.device.partition_backends import choose_partition_backend
from tandem.errors import DeviceError, TandemError
from tandem.rpc.controller_client import ControllerClient
from tandem.types import Phase, Split

GIB = 1 << 30
MIB = 1 << 20
NUM_LINES_SEARCHED = 10_000

SmCheck = Callable[[Split, Mapping[str, str]], SmReport]
AttachCheck = Callable[[MemoryExporter, Mapping[str, str]], AttachReport]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line."""

    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a phase of the deployment would find. `is_running`: there is a deployment that must not be disturbed.

    `free_bytes`: of the GPU's memory; None: not known.
    """

    search: GpuSearch
    mps: MpsControl | None
    environ: Mapping[str, str]
    is_running: bool
    free_bytes: int | None = None


def examine_device(deployment: Deployment, around: Surroundings, check_attach: AttachCheck) -> Iterator[Finding]:
    """The GPU and its driver, MPS, and the backends that would be chosen, each with its reason.

    Where no deployment runs, also how soon a process has memory that another one exports.
    """
    yield from _gpu(around)
    yield Finding("mps", _mps(around))
    for phase in Phase:
        choice = choose_partition_backend(
            deployment.partition_backends[phase], around.search, around.environ, num_cores=available_cores()
        )
        yield Finding("partition", f"{phase}: {choice.name} ({choice.reason})")
    yield from _memory(deployment, around, check_attach)


def examine_machine(deployment: Deployment, around: Surroundings) -> Iterator[Finding]:
    """Processor, kernels, memory and port."""
    yield Finding("processor", _processor())
    yield Finding("kernels", _kernels(around.search.gpu))
    memory = psutil.virtual_memory()
    yield Finding("ram", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available")
    yield Finding("port", _port(deployment.gateway.host, deployment.port or deployment.gateway.port))


def examine_shares(deployment: Deployment, around: Surroundings, check_sms: SmCheck) -> Iterator[Finding]:
    """Each phase's share as applied where a deployment runs; else, on a GPU, the SMs that shares really get."""
    if around.is_running:
        yield from _applied(deployment)
    elif around.search.gpu is not None:
        yield from _sms(deployment, around, check_sms)


def _gpu(around: Surroundings) -> Iterator[Finding]:
    gpu = around.search.gpu
    if gpu is None:
        yield Finding("device", f"no GPU: {around.search.reason}")
        return
    capability, driver = (".".join(map(str, version)) for version in (gpu.compute_capability, gpu.cuda_version))
    free = "" if around.free_bytes is None else f"{around.free_bytes / GIB:.1f} GiB free of "
    yield Finding("device", f"{gpu.name}, {free}{gpu.memory_bytes / GIB:.0f} GiB, {gpu.num_sms} SMs")
    yield Finding("driver", f"serves CUDA {driver}; compute capability {capability}")


def _mps(around: Surroundings) -> str:
    if around.mps is None:
        return "not used"
    if not around.mps.is_running():
        return "its control daemon does not run; `tandem up` starts it"
    served = "serves this machine's phases" if around.search.gpu and around.search.gpu.has_mps else "serves nobody"
    clients = sum(len(around.mps.client_pids(server)) for server in around.mps.server_pids())
    return f"control daemon in {around.mps.directories.pipe}, {served}; clients now: {clients}"


def _memory(deployment: Deployment, around: Surroundings, check_attach: AttachCheck) -> Iterator[Finding]:
    try:
        choice = choose_exporter(deployment.memory_backend, lambda: None)
    except TandemError as error:
        yield Finding("memory", f"{deployment.memory_backend}: not to be had: {error}")
        return
    yield Finding("memory", f"{choice.exporter.kind} ({choice.reason})")
    if not around.is_running:
        yield Finding("attach", _attach(choice.exporter, around.environ, check_attach))


def _attach(exporter: MemoryExporter, environ: Mapping[str, str], check_attach: AttachCheck) -> str:
    try:
        report = check_attach(exporter, environ)
    except DeviceError as error:
        return f"not measured: {error}"
    size = f"{report.size_bytes / MIB:.0f} MiB of {report.kind}"
    return (
        f"{size} mapped {report.process_s:.1f} s after a process's start; a mapping alone {report.map_s * 1e3:.2f} ms"
    )


def _processor() -> str:
    from tandem.device.cpu.affinity import cgroup_quota_cores

    text = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores may be used"
    quota = cgroup_quota_cores()
    return text if quota == float("inf") else f"{text}, for the time of {quota:g}"


def _kernels(gpu: GpuFacts | None) -> str:
    import torch

    from kernels.choice import choose_kernels

    device = torch.device("cuda" if gpu else "cpu")
    try:
        choice = choose_kernels(torch.bfloat16, device, gpu.num_sms if gpu else None)
    except DeviceError as error:
        return f"none: {error}"
    return f"{choice.kernels.name} ({choice.reason})" if choice.reason else choice.kernels.name


def _port(host: str, port: int) -> str:
    error = bind_error(host, port)
    return f"{host}:{port}: {error.strerror}" if error else f"{host}:{port} is free"


def _applied(deployment: Deployment) -> Iterator[Finding]:
    for replica in replica_dirs(deployment.run_dir):
        yield from _applied_in(deployment, replica)


def _applied_in(deployment: Deployment, replica: int) -> Iterator[Finding]:
    try:
        with ControllerClient(deployment.address("controller", replica)) as client:
            phases = client.status().phases
    except TandemError as error:
        yield Finding(Program("shares", replica).name, f"not known: {error}")
        return
    for status in phases:
        name = Program(status.phase, replica).name
        attached_s = seconds_to_serve(last_lines(log_path(deployment.run_dir, name), NUM_LINES_SEARCHED))
        attached = "" if attached_s is None else f"; attached and serving {attached_s:.1f} s after its start"
        yield Finding(name, (status.applied_detail or "no share applied yet") + attached)


def seconds_to_serve(lines: Sequence[str]) -> float | None:
    """From a phase's newest start to its serving, by its log; None where the log does not reach back to it."""
    started: datetime | None = None
    served: datetime | None = None
    for event in map(parse_line, lines):
        if event.name == "service.starting":
            started, served = datetime.fromisoformat(event.timestamp), None
        elif event.name == "phase.state" and event.fields.get("state") == "serving":
            served = datetime.fromisoformat(event.timestamp)
    return (served - started).total_seconds() if started and served else None


def _sms(deployment: Deployment, around: Surroundings, check_sms: SmCheck) -> Iterator[Finding]:
    if around.search.gpu is None or not around.search.gpu.has_mps:
        yield Finding("SMs", "not probed: without MPS no phase has SMs of its own")
        return
    try:
        report = check_sms(deployment.initial_split, around.environ)
    except DeviceError as error:
        yield Finding("SMs", f"not probed: {error}")
        return
    for phase in Phase:
        yield Finding(str(phase), f"ran on {len(report.uses[phase].sm_ids)} SMs of {report.quotas[phase]} that it has")
    yield Finding("SMs", "; ".join(report.faults) or "the phases' SMs are disjoint, and were used at the same time")

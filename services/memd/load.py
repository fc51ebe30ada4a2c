"""The loader, memd's child: opens the model and writes its weights into the segment that memd hands it.

Where the segments are a GPU's, this process alone of memd's has a context there, until it has filled them.

``python -m services.memd.load --channel-fd N ...``; see `services.memd.loader_protocol` for what is said over N.
"""

import argparse
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from kernels.native.levels import NativeUnavailableError, choose_level
from services.memd.loader_protocol import FILLED, LoadPlan, encode, encode_failure, encode_plan
from tandem.device.cpu.aligned_mapping import collapse
from tandem.device.memory import MappedSegment, MemoryImporter, SegmentKind
from tandem.device.memory_backends import IMPORTERS, Importers
from tandem.errors import ModelError, TandemError
from tandem.model.config import WeightManifest
from tandem.model.manifest import build_manifest
from tandem.model.registry import get_family
from tandem.model.source import ModelSource, fill, open_model
from tandem.model.views import weight_views
from tandem.rpc.ending import end_process
from tandem.rpc.segments import ReceivedSegment, read_segments, receive
from tandem.telemetry.logs import configure_logging

RECEIVE_BYTES = 4096
CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Target:
    """Where the weights go."""

    kind: SegmentKind
    importer: MemoryImporter


@dataclass(frozen=True, slots=True)
class Storing:
    """How the weights are stored: ``memd.dtype``, which may be ``auto``, and ``memd.quantization``."""

    dtype: str
    quantization: str


def choose_dtype(asked: str, kind: SegmentKind, cpu_flags: frozenset[str], native_level: str) -> str:
    """``auto`` is float32 only on a processor that does not multiply bfloat16 and has no native kernels either.

    `native_level` names the kernels that phases will use for bfloat16 here; empty: torch's.
    """
    if asked != "auto":
        return asked
    good = kind is not SegmentKind.MEMFD or native_level or cpu_flags & BFLOAT16_FLAGS
    return "bfloat16" if good else "float32"


def cpu_flags(cpu_info: str) -> frozenset[str]:
    """Of the first processor in the text of ``/proc/cpuinfo``; empty where it lists none."""
    flags = (line.partition(":")[2].split() for line in cpu_info.splitlines() if line.startswith("flags"))
    return frozenset(next(flags, []))


def load(channel: socket.socket, model: str, cache_dir: Path, asked: Storing, target: Target) -> None:
    """The whole conversation. ModelError when the model's files are not right, DeviceError."""
    source = open_model(model, cache_dir)
    dtype = _dtype(asked.dtype, target.kind)
    parameters = get_family(source.config.family).parameters(source.config)
    manifest = build_manifest(parameters, dtype, asked.quantization)
    channel.sendall(encode_plan(_plan(source, manifest, target.importer.free_bytes())))
    segments = _receive(channel)
    weights = target.importer.map(segments["weights"], writable=True)
    fill(source, parameters, manifest, weight_views(weights, manifest))
    if segments["weights"].kind is SegmentKind.MEMFD:
        use_huge_pages(weights)
    weights.close()
    if segments["kv"].kind is not SegmentKind.MEMFD:
        _zero(target.importer.map(segments["kv"], writable=True))
    channel.sendall(encode(FILLED))


def _dtype(asked: str, kind: SegmentKind) -> str:
    flags, native = cpu_flags(CPU_INFO.read_text()), _native_level()
    dtype = choose_dtype(asked, kind, flags, native)
    cpu_has = sorted(flags & BFLOAT16_FLAGS)
    _log.info("model.dtype_chosen", dtype=dtype, asked=asked, memory=kind.value, cpu_has=cpu_has, native=native)
    return dtype


def _native_level() -> str:
    try:
        return choose_level().name
    except NativeUnavailableError:
        return ""


def _plan(source: ModelSource, manifest: WeightManifest, free_bytes: int) -> LoadPlan:
    return LoadPlan(
        model_name=source.name,
        model_config_json=source.config.to_json(),
        manifest_json=manifest.to_json(),
        digest=source.digest(),
        dtype=manifest.stored_dtype,
        kv_dtype=manifest.dtype,
        free_bytes=free_bytes,
    )


def _receive(channel: socket.socket) -> Mapping[str, ReceivedSegment]:
    answer, fds = receive(channel, RECEIVE_BYTES)
    if not fds:
        raise ModelError("memd went away before it made the segments")
    return read_segments(answer, fds)


def use_huge_pages(segment: MappedSegment, collapse: Callable[[int, int], None] = collapse) -> None:
    """For everybody who maps the segment from now on. A kernel that cannot leaves it as it is: only slower to read."""
    content = segment.tensor("uint8", (segment.size_bytes,))
    try:
        collapse(content.data_ptr(), segment.size_bytes)
    except OSError as error:
        _log.info("weights.without_huge_pages", size_bytes=segment.size_bytes, error=str(error))
    else:
        _log.info("weights.in_huge_pages", size_bytes=segment.size_bytes)


def _zero(segment: MappedSegment) -> None:
    """A masked key is multiplied by 0, so it must be a number: of device memory nobody says what it holds."""
    segment.tensor("uint8", (segment.size_bytes,)).zero_()
    segment.close()


def main(argv: Sequence[str], importers: Importers = IMPORTERS) -> int:
    """Loads as the flags say; the exit status."""
    flags = _parser().parse_args(argv)
    configure_logging("memd.load", flags.log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # memd ends its loader itself
    with socket.socket(fileno=flags.channel_fd) as channel:
        try:
            target = Target(flags.memory_kind, importers[flags.memory_kind]())
            load(channel, flags.model, flags.cache_dir, Storing(flags.dtype, flags.quantization), target)
        except BrokenPipeError:
            return 1  # memd has ended, nobody waits for the model
        except TandemError as error:
            return _report(channel, error)
        except Exception as error:
            _log.exception("loader.crashed")
            return _report(channel, ModelError(f"{type(error).__name__} while loading {flags.model}: {error}"))
    return 0


def _report(channel: socket.socket, error: TandemError) -> int:
    with suppress(OSError):
        channel.sendall(encode_failure(error))
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="services.memd.load")
    parser.add_argument("--model", required=True)
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--quantization", required=True)
    parser.add_argument("--memory-kind", type=SegmentKind, required=True)
    parser.add_argument("--log-level", required=True)
    parser.add_argument("--channel-fd", type=int, required=True)
    return parser


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))

"""The loader, memd's child: opens the model and writes its weights into the segment that memd hands it.

``python -m services.memd.load --channel-fd N ...``; see `services.memd.loader_protocol` for what is said over N.
"""

import argparse
import json
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from services.memd.loader_protocol import FILLED, LoadPlan, encode, encode_failure, encode_plan
from tandem.device.cpu.memory import MemfdImporter
from tandem.errors import ModelError, TandemError
from tandem.model.config import WeightManifest
from tandem.model.family import Parameter
from tandem.model.manifest import build_manifest
from tandem.model.registry import get_family
from tandem.model.source import ModelSource, fill, open_model
from tandem.telemetry.logs import configure_logging

RECEIVE_BYTES = 4096
CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})

_log = structlog.get_logger()


def choose_dtype(asked: str, cpu_flags: frozenset[str]) -> str:
    """``auto`` is bfloat16 where the processor multiplies it, float32 elsewhere."""
    if asked != "auto":
        return asked
    return "bfloat16" if cpu_flags & BFLOAT16_FLAGS else "float32"


def cpu_flags(cpu_info: str) -> frozenset[str]:
    """Of the first processor in the text of ``/proc/cpuinfo``; empty where it lists none."""
    flags = (line.partition(":")[2].split() for line in cpu_info.splitlines() if line.startswith("flags"))
    return frozenset(next(flags, []))


def load(channel: socket.socket, model: str, cache_dir: Path, asked_dtype: str) -> None:
    """The whole conversation. ModelError when the model's files are not right."""
    source = open_model(model, cache_dir)
    dtype = _dtype(asked_dtype)
    parameters = get_family(source.config.family).parameters(source.config)
    manifest = build_manifest(parameters, dtype)
    channel.sendall(encode_plan(_plan(source, manifest)))
    _fill(channel, source, parameters, manifest)
    channel.sendall(encode(FILLED))


def _dtype(asked: str) -> str:
    flags = cpu_flags(CPU_INFO.read_text())
    dtype = choose_dtype(asked, flags)
    _log.info("model.dtype_chosen", dtype=dtype, asked=asked, cpu_has=sorted(flags & BFLOAT16_FLAGS))
    return dtype


def _plan(source: ModelSource, manifest: WeightManifest) -> LoadPlan:
    return LoadPlan(
        model_name=source.name,
        model_config_json=source.config.to_json(),
        manifest_json=manifest.to_json(),
        digest=source.digest(),
        dtype=manifest.dtype,
        kv_dtype=manifest.dtype,
    )


def _fill(
    channel: socket.socket, source: ModelSource, parameters: Sequence[Parameter], manifest: WeightManifest
) -> None:
    answer, fds, _, _ = socket.recv_fds(channel, RECEIVE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        raise ModelError("memd went away before it made the weight segment")
    mapped = MemfdImporter().map(fds[0], json.loads(answer)["size_bytes"], writable=True)
    weights = {
        name: mapped.tensor(manifest.dtype, place.shape, place.offset_bytes) for name, place in manifest.tensors.items()
    }
    fill(source, parameters, manifest, weights)


def main(argv: Sequence[str]) -> int:
    """Loads as the flags say; the exit status."""
    flags = _parser().parse_args(argv)
    configure_logging("memd.load", flags.log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # memd ends its loader itself
    with socket.socket(fileno=flags.channel_fd) as channel:
        try:
            load(channel, flags.model, flags.cache_dir, flags.dtype)
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
    parser.add_argument("--log-level", required=True)
    parser.add_argument("--channel-fd", type=int, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

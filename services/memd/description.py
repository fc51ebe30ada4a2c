"""What stands beside memd's segments in the keeper, so that the next memd knows whether it may go on with them."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.memd.loader_protocol import LoadPlan
from tandem.config.settings import MemdConfig
from tandem.device.cpu.memory import MemfdExporter
from tandem.device.memory import ExportedSegment, SegmentHandle
from tandem.errors import DeviceError, ModelNotFoundError
from tandem.kv.layout import LAYOUT, KvLayout
from tandem.model.location import ModelKind, ModelLocation, locate

NAME = "description"
MODEL_FILES = ("*.json", "*.safetensors")  # of a Hugging Face folder

Identity = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Description:
    """`identity`: see `identity_of`; `plan`: the loaded model."""

    identity: Identity
    plan: LoadPlan
    kv_layout: KvLayout


def identity_of(config: MemdConfig) -> Identity:
    """What must be equal for storage to be what `config` asks for; model files are known by size and date.

    A model that is not there has no files: whoever loads it says so.
    """
    return {
        "layout": LAYOUT,
        "model": config.model,
        "files": _stamps(config),
        "dtype": config.dtype,
        "quantization": config.quantization,
        "memory_backend": config.memory_backend,
        "block_size": config.block_size,
        "kv_bytes": config.kv_bytes,
    }


def differences(held: Identity, wanted: Identity) -> str:
    """What is held and is not wanted, both values of each; empty when they are equal."""
    keys = [key for key in wanted if held.get(key) != wanted[key]]
    return "; ".join(f"{key}: {held.get(key)!r} is held, {wanted[key]!r} is asked for" for key in keys)


def write_description(description: Description) -> ExportedSegment:
    """A segment that holds it."""
    text = json.dumps(
        {
            "identity": description.identity,
            "plan": asdict(description.plan),
            "kv_layout": description.kv_layout.to_json(),
        }
    ).encode()
    segment = MemfdExporter().create(NAME, len(text))
    os.pwrite(segment.fd, text, 0)
    segment.seal()
    return segment


def read_description(segment: SegmentHandle) -> Description:
    """What `write_description` wrote. DeviceError when it is something else."""
    try:
        said = json.loads(os.pread(segment.fd, segment.size_bytes, 0))
        return Description(said["identity"], LoadPlan(**said["plan"]), KvLayout.from_json(said["kv_layout"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"the description of the segments cannot be read: {error!r}") from error


def _stamps(config: MemdConfig) -> list[list[Any]]:
    try:
        location = locate(config.model, config.cache_dir)
        return [_stamp(path) for path in _files(location)]
    except (ModelNotFoundError, OSError):
        return []


def _files(location: ModelLocation) -> list[Path]:
    if location.kind is not ModelKind.HF_FOLDER:
        return [location.path]
    return sorted(path for pattern in MODEL_FILES for path in location.path.glob(pattern))


def _stamp(path: Path) -> list[Any]:
    """A link to nothing has a name alone."""
    try:
        status = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), status.st_size, status.st_mtime_ns]
